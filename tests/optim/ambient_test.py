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
from tests.optim.steps import run

SHAPES = [(9, 2), (5, 4), (6, 6), (7, 1)]
ORDERS = {2: (9, 9, 9), 3: (0, 9, 9), 4: (0, 0, 9), None: (0, 0, 0)}


def problem(shape, size=1.0, seed=0):
  """Returns X [m, n], m >= n, of orthonormal columns, and Y of norm `size`."""
  rng = np.random.default_rng(seed)
  x = np.linalg.qr(rng.normal(size=shape))[0]
  y = rng.normal(size=shape)
  return x, y * size / np.linalg.norm(y)


def generator(x, y):
  """Returns the skew matrix A [m, m] of a step."""
  d = y - x @ (x.T @ y + y.T @ x) / 2
  p = d - x @ (x.T @ d) / 2
  return p @ x.T - x @ p.T


def check_rotation(rotate, shape, size, order):
  """Raises unless the update is p(A)X − X for p of this order (None: exp)."""
  x, y = problem(shape, size)
  omega = generator(x, y)
  if order is None:
    want = scipy.linalg.expm(omega) @ x - x
  else:
    want, term = 0.0, x
    for k in range(1, order + 1):
      term = omega @ term / k
      want = want + term
  with jax.enable_x64(True):
    got = rotate(jnp.asarray(x), jnp.asarray(y), thresholds=ORDERS[order])
  assert np.linalg.norm(np.asarray(got) - want) <= 1e-13 * max(1, size**2)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('shape', SHAPES)
def test_every_branch_is_the_dense_rotation(shape, order):
  for size in (1e-3, 0.3) if order else (1e-3, 0.3, 3.0, 100.0):
    check_rotation(ambient.rotate, shape, size, order)


def off(x, y, **options):
  return ambient.rotate(x, 1.001 * y, **options)


def half_projected(x, y, **options):
  return ambient.rotate(x, y, **options) + x @ (x.T @ y + y.T @ x) / 1e6


def narrow(x, y, **options):
  low = [a.astype(jnp.bfloat16).astype(a.dtype) for a in (x, y)]
  return ambient.rotate(*low, **options)


def first_order(x, y, **_):
  return y - x @ (x.T @ y + y.T @ x) / 2


def test_the_dense_rotation_rejects():
  for fault in (off, half_projected, narrow, first_order):
    with pytest.raises(AssertionError):
      check_rotation(fault, (9, 2), 0.3, None)


def test_a_rotation_keeps_what_is_off_the_manifold():
  """A step leaves XᵀX as it is, for any X: A is skew."""
  x, y = problem((9, 2), 0.5)
  x = x @ np.array([[1.1, 0.2], [0.0, 0.9]])
  with jax.enable_x64(True):
    new = x + ambient.rotate(
      jnp.asarray(x), jnp.asarray(y), thresholds=(0,) * 3
    )
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


def descend(tx, x, loss, steps):
  gradient = jax.jit(jax.grad(loss))
  return run(tx, x, steps, lambda x, _: gradient(x))[0]


def eigenspace(shape, dtype):
  """Returns a start, the loss −tr(D XᵀAX), and its minimum."""
  m, n = max(shape), min(shape)
  rng = np.random.default_rng(1)
  q = np.linalg.qr(rng.normal(size=(m, m)))[0]
  values, weights = np.linspace(1, 0, m), np.linspace(1, 0.5, n)
  s = jnp.asarray((q * values) @ q.T)

  def loss(x):
    x = x if shape[0] >= shape[1] else x.T
    return -jnp.sum(x * (s @ x) * jnp.asarray(weights)[None])

  start = problem((m, n))[0].astype(dtype)
  start = jnp.asarray(start if shape[0] >= shape[1] else start.T)
  return start, loss, -np.sum(values[:n] * weights)


@pytest.mark.slow  # Two optimizers are compiled, twice.
@pytest.mark.parametrize(
  ('shape', 'exact'),
  [((20, 3), True), ((3, 20), True), ((8, 8), True), ((3, 20), False)],
)
def test_with_sgd_both_paths_are_the_same_mathematics(shape, exact):
  """Exact steps or retractions keep both on the manifold."""
  with jax.enable_x64(True):
    x, loss, _ = eigenspace(shape, np.float64)
    options = {'thresholds': (0, 0, 0)} if exact else {'retraction_period': 1}
    algebra, moved = (
      descend(
        optim.orthogonal(optax.sgd, 0.05, moments=path, **options), x, loss, 40
      )
      for path in ('algebra', 'ambient')
    )
    assert np.linalg.norm(moved - algebra) <= 1e-8
    assert np.linalg.norm(moved - x) > 0.1


@pytest.mark.slow  # 800 steps.
def test_adam_ends_at_the_same_optimum_on_both_paths():
  x, loss, best = eigenspace((20, 3), np.float32)
  rate = optax.cosine_decay_schedule(0.1, 400)
  for path in ('algebra', 'ambient'):
    tx = optim.orthogonal(optax.adam, rate, moments=path)
    end = descend(tx, x, loss, 400)
    assert float(loss(end)) == pytest.approx(best, rel=1e-4)
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
