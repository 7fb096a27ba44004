"""Tests the polar factor and the orthogonality error in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import optim
from tests.optim.steps import EPS
from tests.optim.steps import low

jit_retract = jax.jit(optim.polar_retract, static_argnames='method')
SHAPES = ((1, 1), (6, 6), (33, 33), (20, 7), (7, 20), (1, 5))


def matrix(shape, condition=1.0, seed=0):
  """Returns a matrix with random singular vectors and a given condition."""
  rng = np.random.default_rng(seed)
  u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
  s = np.geomspace(1, 1 / condition, min(shape))
  return ((u * s) @ vt).astype(np.float32)


def check_polar(out, x):
  """Raises unless `out` is the float64 polar factor of x, and orthonormal.

  LAPACK's singular vectors, and a few products, are backward stable to a small
  multiple of n·eps·‖X‖₂ in the worst case; the factor moves by up to 1/σ_min
  as much.
  """
  assert out.dtype == x.dtype
  rounding = 4 * max(x.shape) * np.finfo(x.dtype).eps
  out, x = np.asarray(out, np.float64), np.asarray(x, np.float64)
  u, s, vt = np.linalg.svd(x, full_matrices=False)
  error = np.linalg.norm(out - u @ vt)
  assert error <= rounding * s[0] / s[-1], error / rounding
  gram = out.T @ out if len(x) >= len(x.T) else out @ out.T
  assert np.linalg.norm(gram - np.eye(len(gram))) <= rounding


@pytest.fixture(params=['newton_schulz', 'svd'])
def retract(request):
  return functools.partial(jit_retract, method=request.param)


@pytest.mark.parametrize('shape', SHAPES)
def test_the_polar_factor_from_near_and_far_at_any_scale(retract, shape):
  """Returns a stack of drifted, ill-conditioned, tiny and huge matrices."""
  noise = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  starts = [matrix(shape), matrix(shape) + 1e-4 * noise, noise]
  starts += [matrix(shape, c, int(c)) for c in (10, 1e3, 1e5)]
  starts += [np.float32(x) * matrix(shape, 3) for x in (1e-30, 0.4, 3, 1e30)]
  stack = np.stack(starts).reshape(2, -1, *shape)
  out = retract(stack)
  assert out.shape == stack.shape
  for x, y in zip(starts, out.reshape(-1, *shape), strict=True):
    check_polar(y, x)
  # What is orthogonal stays where it is.
  np.testing.assert_allclose(out[0, 0], starts[0], atol=8 * EPS, rtol=0)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_comes_back_alone(retract, bad):
  stack = np.stack([matrix((4, 4), 2)] * 3)
  stack[1, 0, 0] = bad
  first, same, last = retract(stack)
  np.testing.assert_array_equal(same, stack[1])
  check_polar(first, stack[0])
  check_polar(last, stack[2])


def test_nothing_that_is_not_finite_is_written(retract):
  singular = [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 1.0, 0.0])]
  extreme = [np.full((3, 3), x) for x in (3e38, 1e-45)]
  stack = np.float32(np.stack([*singular, *extreme]))
  assert np.all(np.isfinite(retract(stack)))


def test_float64_is_float64(retract):
  x = matrix((9, 5), 100).astype(np.float64)
  with jax.enable_x64(True):
    check_polar(retract(x), x)


def test_a_drifted_matrix_costs_two_products():
  """Its result is that of one step by hand: the loop is not entered."""
  x = matrix((16, 16)) + np.float32(1e-5)
  d = x.T @ x - np.eye(16, dtype=np.float32)
  np.testing.assert_allclose(
    optim.polar_retract(jnp.asarray(x)), x - x @ d / 2, atol=2 * EPS, rtol=0
  )


def test_an_unknown_method_raises():
  with pytest.raises(ValueError, match='newton_schulz'):
    optim.polar_retract(jnp.eye(3), method='qr')


error_of = jax.jit(optim.orthogonality_error, static_argnames='iterations')


@pytest.mark.parametrize('shape', SHAPES)
def test_orthogonality_error_is_the_spectral_norm(shape):
  """The error is not normalised, for each matrix of a stack."""
  noise = np.random.default_rng(3).normal(size=shape)
  stack = np.stack([matrix(shape) + x * noise for x in (1e-7, 1e-3, 1.0, 9.0)])
  stack = np.append(stack, 0.5 * stack[:1], axis=0).astype(np.float32)
  s = np.linalg.svd(stack.astype(np.float64), compute_uv=False)
  want = np.max(np.abs(s**2 - 1), axis=1)
  # The float32 Gram matrix rounds by √n·eps·‖X‖₂², its eigenvalues too.
  tolerance = 2 * np.sqrt(max(shape)) * EPS * np.maximum(1, s[:, 0] ** 2)
  assert np.all(np.abs(error_of(stack) - want) <= tolerance)
  # Power iteration: never above, and 200 of them get within a few per cent.
  below = error_of(stack, iterations=200)
  assert np.all(below <= want + tolerance)
  assert np.all(below >= 0.9 * want - tolerance)


def one_step(x, gram):
  return x @ (1.5 * jnp.eye(len(x)) - 0.5 * gram)


def transposed_factor(x):
  u, _, vt = jnp.linalg.svd(x, full_matrices=False)
  return u @ vt.T


def test_the_polar_check_rejects():
  for fault, condition in (  # At which it must be seen.
    (lambda x: x, 1.001),
    (lambda x: one_step(x, x.T @ x), 10),
    (lambda x: jnp.linalg.qr(x)[0], 10),
    (transposed_factor, 10),
    (lambda x: 1.001 * optim.polar_retract(x), 1),
    (lambda x: one_step(x, low(low(x).T @ low(x))), 1),
  ):
    x = jnp.asarray(matrix((8, 8), condition))
    check_polar(jit_retract(x), x)
    with pytest.raises(AssertionError):
      check_polar(fault(x), x)
