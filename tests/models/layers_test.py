"""Parameter-free layers, with NumPy loops as oracles.

That they are 1-Lipschitz is searched in whole models: `interface_test`.
"""

from fractions import Fraction
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import layers

# Exact rationals, so that ⌊ratio·c⌋ is exact here. 0.29·100, 0.57·100 and
# 0.58·50 are below the integer in binary floating point; 0.07·100 above it.
BETAS = ('0', '1/8', '0.07', '0.29', '1/2', '0.57', '0.58', '1')


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# ── Oracles ──────────────────────────────────────────────────────────────────


def beta_abs_by_loops(x, beta):
  out = x.copy()
  for i in range(math.floor(beta * x.shape[-1])):
    out[..., i] = abs(out[..., i])
  return out


def shift_by_loops(x, ratio, padding):
  """Token (i, j) receives the value of its neighbour: up takes (i + 1, j)."""
  h, w, c = x.shape[1:]
  k = math.floor(ratio * c)
  out = np.zeros_like(x)
  for n, i, j, ch in itertools.product(*map(range, x.shape)):
    group = ch // k if k and ch < 4 * k else 4
    di, dj = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))[group]
    inside = 0 <= i + di < h and 0 <= j + dj < w
    if inside or padding == 'circular':
      out[n, i, j, ch] = x[n, (i + di) % h, (j + dj) % w, ch]
  return out


def l2_pool_by_loops(x):
  b, _, _, c = x.shape
  squares = np.zeros((b, c))
  for i, j in np.ndindex(x.shape[1:3]):
    squares += np.float64(x[:, i, j]) ** 2
  return np.sqrt(squares)


def patchify_by_loops(x, k):
  b, height, width, ch = x.shape
  out = np.zeros((b, height // k, width // k, k * k * ch), x.dtype)
  for i, j in np.ndindex(out.shape[1:3]):
    patch = x[:, i * k : (i + 1) * k, j * k : (j + 1) * k]
    out[:, i, j] = patch.reshape(b, -1)
  return out


# ── The checks; each rejects a planted fault further down ────────────────────


def check_beta_abs(fn, beta, channels):
  x = normal(2, 3, channels).astype(np.float32)
  np.testing.assert_array_equal(
    jax.jit(lambda x: fn(x, float(beta)))(x), beta_abs_by_loops(x, beta)
  )


def check_shift(fn, ratio, shape, padding):
  x = normal(*shape).astype(np.float32)
  np.testing.assert_array_equal(
    jax.jit(lambda x: fn(x, float(ratio), padding))(x),
    shift_by_loops(x, ratio, padding),
  )


def check_pool(fn, shape):
  x = normal(*shape).astype(np.float32)
  # h·w float32 additions and a root: (h·w/2 + 2)·6e-8 < 1e-6 for h·w <= 20.
  np.testing.assert_allclose(
    jax.jit(fn)(x), l2_pool_by_loops(x), rtol=1e-6, atol=0
  )


# ── β-Abs ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize('beta', BETAS)
def test_beta_abs_rectifies_the_first_channels(beta):
  for channels in (5, 100):
    check_beta_abs(layers.beta_abs, Fraction(beta), channels)


def test_beta_abs_check_rejects_the_naive_channel_count():
  def naive(x, beta):
    rectified = math.floor(beta * x.shape[-1])  # 0.29·100 → 28.
    return x.at[..., :rectified].set(jnp.abs(x[..., :rectified]))

  check_beta_abs(naive, Fraction('1/2'), 8)
  with pytest.raises(AssertionError):
    check_beta_abs(naive, Fraction('0.29'), 100)


@pytest.mark.parametrize('channels', [2, 6, 7])
def test_the_minmax_of_the_package_is_beta_abs_up_to_a_rotation(channels):
  """Pairs are (i, c/2 + i), the larger first: the same, relabelled."""
  half = channels // 2
  q = np.eye(channels)
  for i in range(half):
    q[i, [i, half + i]] = np.array([1, -1]) / math.sqrt(2)
    q[half + i, [i, half + i]] = np.array([1, 1]) / math.sqrt(2)
  # β-Abs gives |a − b|/√2 and (a + b)/√2; Qᵀ makes max and min of them.
  x = normal(50, channels)
  with jax.enable_x64(True):
    rotated = jnp.asarray(x @ q.T)
    ours = np.asarray(layers.min_max(jnp.asarray(x)))
    # ⌊β·7⌋ = 3 pairs of 7 channels.
    other = np.asarray(layers.beta_abs(rotated, half / channels)) @ q
  np.testing.assert_allclose(ours, other, rtol=0, atol=1e-14)
  pairs = np.sort(np.stack([x[:, :half], x[:, half : 2 * half]]), axis=0)
  np.testing.assert_array_equal(ours[:, :half], pairs[1])
  np.testing.assert_array_equal(ours[:, half : 2 * half], pairs[0])
  np.testing.assert_array_equal(ours[:, 2 * half :], x[:, 2 * half :])


# ── Spatial shift ────────────────────────────────────────────────────────────


@pytest.mark.parametrize('padding', layers.PADDINGS)
@pytest.mark.parametrize(
  ('ratio', 'shape'),
  [
    ('1/8', (2, 3, 4, 8)),
    ('1/4', (1, 1, 5, 16)),
    ('0.145', (1, 4, 1, 7)),
    ('0', (1, 2, 2, 4)),
    # 0.145·200 is 29 − 4e-15 in binary, 0.07·200 is 14 + 2e-15.
    ('0.145', (1, 2, 2, 200)),
    ('0.07', (1, 2, 2, 200)),
  ],
)
def test_shift_matches_loops(ratio, shape, padding):
  check_shift(layers.spatial_shift, Fraction(ratio), shape, padding)


def shift_overlapping_groups(x, ratio, padding):
  """Planted: the third group starts one channel early."""
  k = layers.channel_count(ratio, x.shape[-1])
  right = layers.spatial_shift(x, ratio, padding)
  wide = layers.spatial_shift(jnp.roll(x, 1, axis=-1), ratio, padding)
  return right.at[..., 2 * k - 1].set(wide[..., 2 * k])


def shift_rows_for_columns(x, ratio, padding):
  """Planted: heights and widths exchanged."""
  swapped = layers.spatial_shift(jnp.swapaxes(x, 1, 2), ratio, padding)
  return jnp.swapaxes(swapped, 1, 2)


def test_shift_check_rejects():
  for fault in (shift_overlapping_groups, shift_rows_for_columns):
    with pytest.raises(AssertionError):
      check_shift(fault, Fraction('1/8'), (2, 3, 4, 16), 'circular')


# ── L2 pooling ───────────────────────────────────────────────────────────────


def test_l2_pool_matches_loops():
  for shape in ((2, 3, 4, 5), (1, 1, 1, 3)):
    check_pool(layers.l2_pool, shape)
  for fault in (  # An average, wrong axes, ℓ1.
    lambda x: jnp.sqrt(jnp.mean(jnp.square(x), axis=(1, 2))),
    lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 3))),
    lambda x: jnp.sum(jnp.abs(x), axis=(1, 2)),
  ):
    with pytest.raises(AssertionError):
      check_pool(fault, (2, 3, 4, 5))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_l2_pool_gradient_is_finite_at_zero(dtype):
  x = jnp.asarray(normal(2, 2, 3), dtype).at[..., 0].set(0)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(layers.l2_pool(x))))(x)
  gradient = np.asarray(gradient, np.float64)
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradient[..., 0], 0)
  # Elsewhere x/‖x‖: a unit vector, to a few roundings of the dtype.
  norms = np.sqrt(np.sum(gradient**2, axis=(0, 1)))
  np.testing.assert_allclose(norms[1:], 1, atol=4 * jnp.finfo(dtype).eps)


def test_l2_pool_shows_what_is_not_a_number():
  # A nan swallowed here would leave finite logits, and a certificate.
  x = np.ones((1, 2, 2, 4), np.float32)
  x[0, 1, 0, 2:] = np.nan, np.inf
  np.testing.assert_array_equal(
    jax.jit(layers.l2_pool)(x), [[2, 2, np.nan, np.inf]]
  )


# ── Patches ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ('shape', 'k'),
  [((2, 4, 6, 3), 2), ((1, 6, 3, 1), 3), ((1, 8, 4, 2), 4), ((2, 2, 2, 3), 1)],
)
def test_patchify_matches_loops_and_permutes(shape, k):
  x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
  y = np.asarray(layers.patchify(jnp.asarray(x), k))
  np.testing.assert_array_equal(y, patchify_by_loops(x, k))
  np.testing.assert_array_equal(np.sort(y, axis=None), np.sort(x, axis=None))


# ── Arguments and dtypes ─────────────────────────────────────────────────────


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_layers_keep_the_dtype(dtype):
  for layer in (
    layers.beta_abs,
    layers.min_max,
    lambda x: layers.spatial_shift(x, 1 / 4, 'zero'),
    layers.l2_pool,
    lambda x: layers.patchify(x, 2),
  ):
    with jax.enable_x64(True):
      x = jax.ShapeDtypeStruct((1, 2, 2, 4), dtype)
      assert jax.eval_shape(layer, x).dtype == dtype


def test_arguments_that_make_no_sense_raise():
  x = jnp.ones((2, 2, 4))
  for beta in (-0.1, 1.1, math.nan):
    with pytest.raises(ValueError, match=r'beta=.* must lie in \[0, 1\]'):
      layers.beta_abs(x, beta)
  for ratio in (-0.1, 0.26, math.nan):
    with pytest.raises(ValueError, match='shift_ratio='):
      layers.spatial_shift(x, ratio)
  with pytest.raises(ValueError, match=r"padding='same'.*'circular', 'zero'"):
    layers.spatial_shift(x, 1 / 8, 'same')
  with pytest.raises(ValueError, match="'relu'"):
    layers.activate(x, 'relu', 0.5)
  for shape in ((1, 4, 6, 1), (1, 6, 4, 1)):
    with pytest.raises(ValueError, match='patch_size=3 must divide'):
      layers.patchify(jnp.ones(shape), 3)


def test_uint8_and_float_images_agree():
  pixels = np.arange(256, dtype=np.uint8)
  unit = np.asarray(layers.to_unit(jnp.asarray(pixels)))
  # XLA may multiply by 1/255 instead: one more rounding, 2⁻²⁴ relative each.
  np.testing.assert_allclose(unit, pixels.astype(np.float32) / 255, rtol=2**-22)
  floats = jnp.linspace(0, 1, 5)
  assert layers.to_unit(floats) is floats
