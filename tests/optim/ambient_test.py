"""Tests the steps of `ambient` against dense rotations in float64."""

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from lipnext_jax import optim
from lipnext_jax.optim import ambient
from tests.optim.steps import assert_close
from tests.optim.steps import EPS
from tests.optim.steps import low
from tests.optim.steps import noise
from tests.optim.steps import orthonormal
from tests.optim.steps import run
from tests.optim.steps import taylor

SHAPES = [(9, 2), (5, 4), (6, 6), (7, 1)]
# Order → thresholds in units of ‖A‖_F, between which it is chosen.
ORDERS = {2: (1.1, 2, 2), 3: (0.9, 1.1, 2), 4: (0, 0.9, 1.1), None: (0, 0, 0)}


def problem(shape, size=1.0):
  """Returns X [m, n], m >= n, of orthonormal columns, and Y of norm `size`."""
  rng = np.random.default_rng(0)
  x = np.linalg.qr(rng.normal(size=shape))[0]
  y = rng.normal(size=shape)
  return x, y * size / np.linalg.norm(y)


def generator(x, y):
  """Returns the skew A [m, m] of the module's docstring."""
  d = y - x @ (x.T @ y + y.T @ x) / 2
  p = d - x @ (x.T @ d) / 2
  return p @ x.T - x @ p.T


def check_rotation(rotate, shape, size, order):
  """Raises unless the update is p(A)X − X for p of this order (None: exp)."""
  x, y = problem(shape, size)
  a = generator(x, y)
  step = taylor(a, order) if order else scipy.linalg.expm(a) - np.eye(len(a))
  with jax.enable_x64(True):
    thresholds = np.linalg.norm(a) * np.array(ORDERS[order])
    got = rotate(*map(jnp.asarray, (x, y)), thresholds=thresholds)
  assert np.linalg.norm(np.asarray(got) - step @ x) <= 1e-13 * max(1, size**2)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('shape', SHAPES)
def test_every_branch_is_the_dense_rotation(shape, order):
  for size in (1e-3, 0.3) if order else (1e-3, 0.3, 3.0, 100.0):
    check_rotation(ambient.rotate, shape, size, order)


def test_the_dense_rotation_rejects():
  rotate = ambient.rotate

  def normal(x, y):
    return x @ (x.T @ y + y.T @ x) / 2

  for fault in (
    lambda x, y, **options: rotate(x, 1.001 * y, **options),
    lambda x, y, **options: rotate(x, y, **options) + 2e-6 * normal(x, y),
    lambda x, y, **options: rotate(low(x), low(y), **options),
    lambda x, y, **_: y - normal(x, y),  # The first order.
  ):
    with pytest.raises(AssertionError):
      check_rotation(fault, (9, 2), 0.3, None)


def test_a_rotation_keeps_what_is_off_the_manifold():
  """A step leaves XᵀX as it is, for any X: A is skew."""
  x, y = problem((9, 2), 0.5)
  x = x @ np.array([[1.1, 0.2], [0.0, 0.9]])
  with jax.enable_x64(True):
    new = x + ambient.rotate(*map(jnp.asarray, (x, y)), thresholds=(0, 0, 0))
    np.testing.assert_allclose(new.T @ new, x.T @ x, atol=1e-14)


def test_steps_too_large_for_any_digit_are_nan():
  x, y = (jnp.asarray(a, jnp.float32) for a in problem((9, 2)))
  assert np.all(np.isfinite(ambient.rotate(x, 1e2 * y)))
  for bad in (1e6 * y, y * jnp.nan):
    assert np.all(np.isnan(ambient.rotate(x, bad)))


def test_the_projection_is_the_nearest_matrix():
  x, y = problem((9, 2), 30.0)
  d = y - x @ (x.T @ y + y.T @ x) / 2
  want = scipy.linalg.polar(x + d)[0] - x
  with jax.enable_x64(True):
    got = ambient.rotate(*map(jnp.asarray, (x, y)), large_steps='projection')
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_momentum_and_lookahead_add_tangents_of_different_points():
  """A step takes the part of their sum that is tangent where it starts."""
  x = orthonormal((9, 2))
  grads = [noise(x, t) for t in (1, 2, 3)]
  tx = optim.orthogonal(
    optax.sgd(0.1, momentum=0.9),
    lookahead_period=3,
    thresholds=(0, 0, 0),
    moments='ambient',
  )
  got, _ = run(tx, x, 3, lambda _, t: grads[t])
  fast = slow = np.float64(x)
  total = velocity = 0.0
  for g in map(np.float64, grads):
    velocity = 0.9 * velocity + (g - fast @ g.T @ fast) / 2
    total -= 0.1 * velocity
    fast = scipy.linalg.expm(generator(fast, -0.1 * velocity)) @ fast
  want = scipy.linalg.expm(generator(slow, total / 2)) @ slow
  assert_close(got, want, 8 * EPS)


@pytest.mark.slow  # 400 steps.
@pytest.mark.parametrize('path', ['algebra', 'ambient'])
def test_adam_ends_at_the_optimum(path):
  """−tr(W XᵀSX) is least at the first eigenvectors of S, in their order."""
  values, weights = np.linspace(1, 0, 20), np.linspace(1, 0.5, 3)
  q, w = orthonormal((20, 20), 1), np.diag(weights)
  s = q @ np.diag(values) @ q.T

  @jax.jit
  def gradient(x, _):
    return -2 * s @ x @ w

  rate = optax.cosine_decay_schedule(0.1, 400)
  tx = optim.orthogonal(optax.adam, rate, moments=path)
  end, _ = run(tx, orthonormal((20, 3)), 400, gradient)
  reached = jnp.trace(w @ end.T @ s @ end)
  assert reached == pytest.approx(weights @ values[:3], rel=1e-4)
  assert optim.orthogonality_error(end) < 1e-5


def largest(jaxpr):
  """Returns the size of the largest array in a program."""
  sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  for eqn in jaxpr.eqns:
    sizes += [largest(sub) for sub in core.jaxprs_in_params(eqn.params)]
  return max(sizes, default=0)


def test_the_shape_chooses_the_path_and_no_array_is_larger_than_the_matrix():
  def entries(shape, moments='auto'):
    tx = optim.orthogonal(optax.adam, 1e-3, lookahead_period=6, moments=moments)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(tx.init, x)
    return largest(jax.make_jaxpr(tx.update)(x, state, x).jaxpr)

  for shape in ((400, 50), (50, 400)):
    assert entries(shape) == entries(shape, 'ambient') == 400 * 50
    assert entries(shape, 'algebra') >= 400**2
  assert entries((400, 51)) >= 400**2
