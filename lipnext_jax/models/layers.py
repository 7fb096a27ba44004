"""The 1-Lipschitz pieces of LipNeXt that carry no parameters (paper §3).

They keep the dtype of float arrays. Shapes: `b` batch, `h w` token grid, `c`
channels.
"""

import math

import jax
import jax.numpy as jnp

PADDINGS = ('circular', 'zero')
ACTIVATIONS = ('beta_abs', 'minmax')


def channel_count(ratio: float, channels: int) -> int:
  """Returns ⌊ratio·channels⌋ of the decimal ratio, not of its binary rounding.

  >>> channel_count(0.29, 100), channel_count(1 / 8, 100)
  (29, 12)
  """
  return math.floor(round(ratio * channels, 9))


def moved_count(shift_ratio: float, channels: int) -> int:
  """Returns k = 4⌊αC⌋, the number of channels that S moves."""
  return 4 * channel_count(shift_ratio, channels)


def beta_abs(x: jax.Array, beta: float = 0.5) -> jax.Array:
  """Applies β-Abs: |x_i| for the first ⌊βC⌋ channels, x_i after (paper §3.3).

  Norm-preserving. With β = 1/2 it is MinMax up to a rotation.

  Args:
    x: [..., c].
    beta: share of the channels that are rectified, in [0, 1].

  Raises:
    ValueError: `beta` is outside [0, 1].

  >>> beta_abs(jnp.array([-1.0, -2.0, -3.0, 4.0]), beta=0.5).tolist()
  [1.0, 2.0, -3.0, 4.0]
  """
  if not 0 <= beta <= 1:
    raise ValueError(f'{beta=} must lie in [0, 1].')
  return rectify(x, channel_count(beta, x.shape[-1]))


def rectify(x: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
  """Computes |x_i| for the first `count` channels, x_i for the rest."""
  channel = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  return jnp.where(channel < count, jnp.abs(x), x)


def min_max(x: jax.Array) -> jax.Array:
  """Sorts the channels i and i + ⌊C/2⌋ of [..., c], the larger one first.

  Norm-preserving; Qᵀ β-Abs(Q x) with β = 1/2 and the rotation Q by 45° of each
  pair, since max = (a + b)/2 + |a − b|/2 (paper §3.3). The last of an odd
  number of channels passes.

  Reference: C. Anil, J. Lucas, R. Grosse, "Sorting out Lipschitz Function
  Approximation", ICML 2019 (GroupSort of size 2).

  >>> min_max(jnp.array([-1.0, 5.0, 3.0, 4.0, -7.0])).tolist()
  [3.0, 5.0, -1.0, 4.0, -7.0]
  """
  half = x.shape[-1] // 2
  a, b, rest = jnp.split(x, [half, 2 * half], axis=-1)
  pair = [jnp.maximum(a, b), jnp.minimum(a, b)]
  return jnp.concatenate([*pair, rest], axis=-1)


def activate(x: jax.Array, activation: str, beta: float) -> jax.Array:
  """Applies σ by its name: 'beta_abs' (with its β) or 'minmax'."""
  if activation not in ACTIVATIONS:
    raise ValueError(f'{activation=} must be one of {ACTIVATIONS}.')
  return min_max(x) if activation == 'minmax' else beta_abs(x, beta)


def to_unit(images: jax.typing.ArrayLike) -> jax.Array:
  """Converts pixels to [0, 1], float32 or wider: uint8 / 255; floats are kept.

  Other dtypes raise ValueError: their unit is unknown.

  >>> to_unit(jnp.array([0, 255], jnp.uint8)).tolist()
  [0.0, 1.0]
  """
  images = jnp.asarray(images)
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'{images.dtype} images: give floats in [0, 1], or uint8.')
  return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def centre(images: jax.typing.ArrayLike) -> jax.Array:
  """Returns `to_unit` minus 1/2; dividing by a deviation would rescale ε."""
  return to_unit(images) - 0.5


def per_channel(bias: jax.Array, x: jax.Array) -> jax.Array:
  """Reshapes bias [c] to the rank of x [..., c], in the dtype of x."""
  return jnp.expand_dims(bias, tuple(range(x.ndim - 1))).astype(x.dtype)


def spatial_shift(
  x: jax.Array, shift_ratio: float = 1 / 8, padding: str = 'circular'
) -> jax.Array:
  """Applies S: four channel groups move by one token (paper §3.2).

  The first ⌊αC⌋ channels move up, the next ⌊αC⌋ down, then left, then right;
  the rest stay. By the paper's Theorem 1, shifts are the only depthwise
  convolutions with circular padding that preserve norms. Zero padding drops
  what leaves the grid: 1-Lipschitz, but not norm-preserving.

  Args:
    x: [..., h, w, c].
    shift_ratio: α, the share of the channels moved per direction; 4α <= 1.
    padding: 'circular' or 'zero'.

  Raises:
    ValueError: 4α > 1, α < 0, or an unknown padding.

  >>> x = jnp.arange(3.0).reshape(3, 1, 1) * jnp.ones((3, 1, 4))
  >>> spatial_shift(x, 1 / 4)[:, 0].T.tolist()  # up, down, left, right
  [[1.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
  """
  if not 0 <= 4 * shift_ratio <= 1:
    raise ValueError(f'{shift_ratio=} must satisfy 0 <= 4 * shift_ratio <= 1.')
  if padding not in PADDINGS:
    raise ValueError(f'{padding=} must be one of {PADDINGS}.')
  k = channel_count(shift_ratio, x.shape[-1])
  h_axis, w_axis = x.ndim - 3, x.ndim - 2
  # The transpose of a split is a concatenation, so backward is one pass. That
  # of slices would be a sum of ten padded arrays.
  sizes = [k] * 4 + [x.shape[-1] - 4 * k]
  *groups, rest = jax.lax.split(x, sizes, axis=x.ndim - 1)
  moves = ((h_axis, -1), (h_axis, 1), (w_axis, -1), (w_axis, 1))
  rolled = [
    _roll(x, *move, padding) for x, move in zip(groups, moves, strict=True)
  ]
  return jnp.concatenate([*rolled, rest], axis=-1)


def _roll(x: jax.Array, axis: int, step: int, padding: str) -> jax.Array:
  """Moves `x` by `step` (+1 or −1) along `axis`."""
  size = x.shape[axis]
  cut = 1 if step < 0 else size - 1
  head, tail = jax.lax.split(x, [cut, size - cut], axis=axis)
  if padding == 'zero':  # Nothing re-enters on the other side.
    if step < 0:
      head = jnp.zeros_like(head)
    else:
      tail = jnp.zeros_like(tail)
  return jnp.concatenate([tail, head], axis=axis)


def l2_pool(x: jax.Array) -> jax.Array:
  """Pools [..., h, w, c] over the tokens: c ↦ sqrt(Σ_hw x²) (paper §3.1).

  The gradient at a channel that is zero everywhere is defined as zero (any
  element of the unit ball is a subgradient there).

  >>> l2_pool(jnp.array([[[3.0, 0.0]], [[4.0, 0.0]]])).tolist()
  [5.0, 0.0]
  """
  squares = jnp.sum(jnp.square(x), axis=(-3, -2))
  zero = squares == 0  # False for NaN, which must reach the logits.
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts images [b, h·k, w·k, ch] into patches [b, h, w, k·k·ch] of side k.

  A permutation, so an isometry.

  >>> patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 0, 1].tolist()
  [2.0, 3.0, 6.0, 7.0]
  """
  b, height, width, ch = images.shape
  k = patch_size
  if height % k or width % k:
    raise ValueError(
      f'{patch_size=} must divide both image sides {(height, width)}.'
    )
  x = images.reshape(b, height // k, k, width // k, k, ch)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height // k, width // k, -1)
