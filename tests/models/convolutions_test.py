"""Convolutions in space and frequency against dense matrices and sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import convolution
from lipnext_jax.models import convolutions


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def by_taps(x, kernel, padding):
  """Cross-correlation, tap by tap."""
  (h, w), k = x.shape[1:3], len(kernel)
  around = ((k - 1) // 2, k // 2)
  mode = {'circular': 'wrap', 'zero': 'constant'}[padding]
  x = np.pad(x, ((0, 0), around, around, (0, 0)), mode)
  return sum(
    x[:, s : s + h, t : t + w] @ kernel[s, t] for s, t in np.ndindex(k, k)
  )


@pytest.mark.parametrize('padding', ['circular', 'zero'])
@pytest.mark.parametrize(
  ('k', 'grid'), [(3, (4, 5)), (5, (2, 3)), (2, (3, 3)), (1, (2, 2))]
)
def test_convolutions_and_residuals_are_their_definitions(k, grid, padding):
  x, kernel = random(2, *grid, 3), random(k, k, 3, 3, seed=1)
  with jax.enable_x64(True):
    stack = jnp.asarray(kernel[None])
    got, whole = (
      convolutions.convolve(jnp.asarray(x), weights[0], padding)
      for weights in (stack, convolutions.with_identity(stack))
    )
  expected = by_taps(x, kernel, padding)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
  np.testing.assert_allclose(whole, x + expected, rtol=0, atol=1e-12)
  other = by_taps(x, kernel, 'zero' if padding == 'circular' else 'circular')
  if k > 1:  # The check tells them apart.
    assert np.max(np.abs(other - expected)) > 0.1


def dense_reflector(v, grid):
  """I − 2V(VᵀV)⁻¹Vᵀ, V the circular convolution with v [k, k, c, r]."""
  (k, _, c, r), (h, w) = v.shape, grid
  rows = np.zeros((h, w, r, h, w, c))  # Vᵀ.
  for i, j, s, t in np.ndindex(h, w, k, k):
    rows[i, j, :, (i + s) % h, (j + t) % w] += v[s, t].T
  rows = rows.reshape(h * w * r, h * w * c)
  return np.eye(h * w * c) - 2 * np.linalg.pinv(rows) @ rows


def check_reflector(fn, grid):
  x, v = random(2, *grid, 6), random(3, 3, 6, 2, seed=1)
  expected = x.reshape(2, -1) @ dense_reflector(v, grid)  # It is symmetric.
  with jax.enable_x64(True):
    got = jax.jit(fn)(x, v).reshape(2, -1)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('grid', [(4, 4), (3, 5)])
def test_reflectors_are_those_of_the_dense_matrix(grid):
  def by_spectrum(x, v):
    stored = convolutions.reflector_spectrum(v, grid)
    assert stored.shape == (grid[0], grid[1] // 2 + 1, 2, 6, 6)
    return convolutions.apply_spectrum(x, stored)

  check_reflector(convolutions.reflect, grid)
  check_reflector(by_spectrum, grid)


def zero_padded(x, v):
  """Planted: zeros around the image, cut off again afterwards."""
  h, w = x.shape[1:3]
  wide = jnp.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))
  return convolutions.reflect(wide, v)[:, :h, :w]


def reflect_by(projector):
  """Planted: I − 2P with another function of the spectrum for P."""

  def fault(x, v):
    matrix = projector(convolutions.frequencies(v, x.shape[1:3]))
    z = jnp.fft.rfft2(x, axes=(1, 2))
    z = z - 2 * jnp.einsum('hwdc,bhwc->bhwd', matrix, z)
    return jnp.fft.irfft2(z, s=x.shape[1:3], axes=(1, 2))

  return fault


@pytest.mark.parametrize(
  'fault',
  [
    zero_padded,
    reflect_by(lambda v: v @ v.mT.conj()),  # The inverse of VᴴV is forgotten.
    reflect_by(lambda v: v @ jnp.linalg.solve(v.mT @ v, v.mT)),  # Vᵀ for Vᴴ.
  ],
)
def test_the_check_of_reflectors_rejects(fault):
  with pytest.raises(AssertionError, match='Not equal'):
    check_reflector(fault, (4, 4))


def test_an_unknown_padding_is_refused():
  one = jnp.ones((1, 1, 1, 1))
  with pytest.raises(ValueError, match="'reflect'"):
    convolutions.convolve(one, one, 'reflect')


def test_power_iteration_finds_the_norm_and_its_gradient():
  """d‖W‖₂ = uᵀ dW v for the largest singular pair of the dense matrix."""
  kernel, grid = random(3, 3, 4, 4), (5, 5)
  u, values, vt = np.linalg.svd(convolution.matrix(kernel, grid))
  assert values[1] < 0.99 * values[0]  # 500 iterations: 0.99^1000 = 4e-5.

  def estimate(kernel):
    return convolutions.power_iteration(kernel, grid, 'zero', 500)

  with jax.enable_x64(True):
    found, gradient = jax.jit(jax.value_and_grad(estimate))(kernel)
  assert float(found) == pytest.approx(values[0], rel=1e-6)
  assert float(found) <= values[0] * (1 + 1e-12)
  direction = random(3, 3, 4, 4, seed=1)
  expected = u[:, 0] @ convolution.matrix(direction, grid) @ vt[0]
  assert np.vdot(gradient, direction) == pytest.approx(expected, abs=1e-3)


def test_every_update_gives_power_iteration_another_start():
  """Training learns to hide large norms from a start that stays the same."""
  kernel = jnp.float32(random(3, 3, 4, 4))
  moved = kernel.at[1, 2, 0, 3].set(jnp.nextafter(kernel[1, 2, 0, 3], 9.0))

  @jax.jit
  def before_any_iteration(kernel):
    return convolutions.power_iteration(kernel, (5, 5), 'zero', 0)

  one, other = before_any_iteration(kernel), before_any_iteration(moved)
  assert abs(float(one / other) - 1) > 1e-3  # For kernels 1e-7 apart.
  assert one == before_any_iteration(kernel + 0)
