"""Parameter-free layers, with NumPy loops as oracles.

That they are 1-Lipschitz is searched in whole models: `interface_test`.
"""

from fractions import Fraction
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax.models import layers


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape)


def beta_abs_by_hand(x, beta):
  k = math.floor(beta * x.shape[-1])
  return np.concatenate([np.abs(x[..., :k]), x[..., k:]], axis=-1)


def shift_by_loops(x, ratio, padding):
  """Token (i, j) receives the value of its neighbour: up takes (i + 1, j)."""
  h, w, c = x.shape[1:]
  k = math.floor(ratio * c)
  out = np.zeros_like(x)
  for i, j, ch in np.ndindex(h, w, c):
    group = ch // k if k and ch < 4 * k else 4
    di, dj = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))[group]
    inside = 0 <= i + di < h and 0 <= j + dj < w
    if inside or padding == 'circular':
      out[:, i, j, ch] = x[:, (i + di) % h, (j + dj) % w, ch]
  return out


def l2_pool_by_hand(x):
  return np.linalg.norm(np.float64(x), axis=(1, 2))


def patchify_by_loops(x, k):
  b, height, width, ch = x.shape
  out = np.zeros((b, height // k, width // k, k * k * ch), x.dtype)
  for i, j in np.ndindex(out.shape[1:3]):
    patch = x[:, i * k : (i + 1) * k, j * k : (j + 1) * k]
    out[:, i, j] = patch.reshape(b, -1)
  return out


def check(layer, oracle, shape, *options, rtol=0.0):
  """Compares in float32. Ratios are exact here, and floats for the layer."""
  x = normal(*shape).astype(np.float32)
  given = [float(o) if isinstance(o, Fraction) else o for o in options]
  got = jax.jit(lambda x: layer(x, *given))(x)
  np.testing.assert_allclose(got, oracle(x, *options), rtol=rtol, atol=0)


def test_beta_abs_rectifies_the_first_channels():
  # 0.29·100, 0.57·100 and 0.58·50 are below the integer in binary floating
  # point; 0.07·100 is above it.
  for beta in ('0', '1/8', '0.07', '0.29', '1/2', '0.57', '0.58', '1'):
    for c in (5, 50, 100):
      check(layers.beta_abs, beta_abs_by_hand, (2, 3, c), Fraction(beta))


@pytest.mark.parametrize('padding', layers.PADDINGS)
def test_shift_matches_loops(padding):
  for ratio, shape in (
    ('1/8', (2, 3, 4, 8)),
    ('1/4', (1, 1, 5, 16)),
    ('0.145', (1, 4, 1, 7)),
    ('0', (1, 2, 2, 4)),
    ('0.145', (1, 2, 2, 200)),  # 0.145·200 is 29 − 4e-15 in binary.
  ):
    options = (Fraction(ratio), padding)
    check(layers.spatial_shift, shift_by_loops, shape, *options)


POOL_ROUNDING = 1e-6  # 20 additions and a root: (20/2 + 2)·6e-8.


def test_pooling_and_patches_are_their_definitions():
  for shape in ((2, 3, 4, 5), (1, 1, 1, 3)):
    check(layers.l2_pool, l2_pool_by_hand, shape, rtol=POOL_ROUNDING)
  for k, shape in ((2, (2, 4, 6, 3)), (3, (1, 6, 3, 1)), (1, (2, 2, 2, 3))):
    check(layers.patchify, patchify_by_loops, shape, k)


def naive_beta_abs(x, beta):
  rectified = math.floor(beta * x.shape[-1])  # 0.29·100 → 28.
  return x.at[..., :rectified].set(jnp.abs(x[..., :rectified]))


def shift_overlapping_groups(x, ratio, padding):
  """The third group starts one channel early."""
  k = layers.channel_count(ratio, x.shape[-1])
  right = layers.spatial_shift(x, ratio, padding)
  wide = layers.spatial_shift(jnp.roll(x, 1, axis=-1), ratio, padding)
  return right.at[..., 2 * k - 1].set(wide[..., 2 * k])


def shift_rows_for_columns(x, ratio, padding):
  swapped = layers.spatial_shift(jnp.swapaxes(x, 1, 2), ratio, padding)
  return jnp.swapaxes(swapped, 1, 2)


@pytest.mark.parametrize(
  ('fault', 'oracle', 'options'),
  [
    (naive_beta_abs, beta_abs_by_hand, [Fraction('0.29')]),
    (shift_overlapping_groups, shift_by_loops, [Fraction('1/8'), 'circular']),
    (shift_rows_for_columns, shift_by_loops, [Fraction('1/8'), 'circular']),
    # An average, wrong axes, ℓ1.
    (lambda x: jnp.sqrt(jnp.mean(x**2, axis=(1, 2))), l2_pool_by_hand, []),
    (lambda x: jnp.sqrt(jnp.sum(x**2, axis=(1, 3))), l2_pool_by_hand, []),
    (lambda x: jnp.sum(jnp.abs(x), axis=(1, 2)), l2_pool_by_hand, []),
  ],
)
def test_the_comparison_rejects(fault, oracle, options):
  with pytest.raises(AssertionError):
    check(fault, oracle, (2, 3, 4, 100), *options, rtol=POOL_ROUNDING)


@pytest.mark.parametrize('channels', [2, 7])
def test_minmax_sorts_pairs_as_beta_abs_does_after_a_rotation(channels):
  half = channels // 2
  x = normal(50, channels)
  a, b, rest = np.split(x, [half, 2 * half], axis=1)
  want = np.concatenate([np.maximum(a, b), np.minimum(a, b), rest], axis=1)
  turn = np.kron([[1, -1], [1, 1]], np.eye(half)) / math.sqrt(2)
  q = scipy.linalg.block_diag(turn, np.eye(channels % 2))
  # β-Abs gives |a − b|/√2 and (a + b)/√2; Qᵀ makes max and min of them.
  with jax.enable_x64(True):
    ours = layers.min_max(jnp.asarray(x))
    # ⌊β·7⌋ = 3 pairs of 7 channels.
    other = layers.beta_abs(jnp.asarray(x @ q.T), half / channels) @ q
  np.testing.assert_array_equal(ours, want)
  np.testing.assert_allclose(other, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_layers_keep_the_dtype_and_pooling_has_a_gradient_at_zero(dtype):
  with jax.enable_x64(True):
    x = jnp.ones((1, 2, 2, 4), dtype)
    for y in (
      layers.beta_abs(x),
      layers.min_max(x),
      layers.spatial_shift(x, 1 / 4, 'zero'),
      layers.l2_pool(x),
      layers.patchify(x, 2),
    ):
      assert y.dtype == dtype
    x = jnp.asarray(normal(2, 2, 3), dtype).at[..., 0].set(0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(layers.l2_pool(x))))(x)
    gradient = np.asarray(gradient, np.float64)
  np.testing.assert_array_equal(gradient[..., 0], 0)
  # Elsewhere x/‖x‖: a unit vector, to a few roundings of the dtype.
  norms = np.linalg.norm(gradient, axis=(0, 1))
  np.testing.assert_allclose(norms[1:], 1, atol=4 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize(
  ('layer', 'arguments', 'problem'),
  [
    (layers.beta_abs, (1.1,), r'beta=1\.1 must lie in \[0, 1\]'),
    (layers.spatial_shift, (0.26,), r'shift_ratio=0\.26 must satisfy'),
    (layers.spatial_shift, (0, 'same'), r"='same'.*'circular', 'zero'"),
    (layers.activate, ('relu', 0.5), "'relu' must be one of"),
    (layers.patchify, (3,), 'patch_size=3 must divide'),
  ],
)
def test_arguments_that_make_no_sense_raise(layer, arguments, problem):
  with pytest.raises(ValueError, match=problem):
    layer(jnp.ones((1, 6, 4, 4)), *arguments)


def test_bytes_are_divided_by_255():
  pixels = np.arange(256, dtype=np.uint8)
  unit = np.asarray(layers.to_unit(jnp.asarray(pixels)))
  # XLA may multiply by 1/255 instead: one more rounding, 2⁻²⁴ relative each.
  np.testing.assert_allclose(unit, pixels.astype(np.float32) / 255, rtol=2**-22)
