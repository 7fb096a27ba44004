"""Layers of LipNeXt with parameters: the block and dense ones (paper §3.1).

The paper's block is Z = σ( M Rᵀ S( R (X + p) ) + b ) with a square R. The
spatial shift S moves k = 4⌊αc⌋ of the c channels (α: `shift_ratio`). The other
rows of R cancel in RᵀSR, so they are not stored. From here on, R [k, c] has the
rows of the channels that move, and S shifts only these:

    RᵀSR  becomes  I + Rᵀ(S − I)R.

A block takes u and returns v, both before the activation σ (β-Abs), because the
backward pass needs the signs that σ removes. The next block applies σ to v;
after the last block, the network does.

Shapes: `t` tokens, t = b·h·w; `b` batch, `h w` token grid, `c` channels.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models import products


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """Options that all blocks of a network share; `LipNeXt` explains them."""

  grid: tuple[int, int]  # (h, w).
  shift_ratio: float
  padding: str
  activation: str
  beta: float
  position: bool
  r_init: str
  m_init: str
  parametrization: str
  numerics: products.Numerics  # Arithmetic of all products.


class Weights(NamedTuple):
  """Parameters of one block, float32 (or something for each of them)."""

  r: Any  # Shape [k, c], orthonormal rows; None if k = 0.
  m: Any  # Shape [c, c], orthogonal.
  bias: Any  # Shape [c].
  pos: Any  # Shape [h, w, 1].


class Devices:
  """Communication of a block between devices; here for one device: none.

  `parallel.blocks.Layout` implements it for a mesh. There, n devices may share
  the channels: each has c/n of them, and the matching columns of R and M.
  """

  def constrain(self, u: jax.Array) -> jax.Array:
    """Lays out the tokens [t, c] that enter the first block."""
    return u

  def run(self, spec: BlockSpec, weights: Weights, u: jax.Array) -> jax.Array:
    """Applies a block to whole arrays, wherever their parts are stored."""
    return apply_block(spec, weights, u, self)

  def activate(self, spec: BlockSpec, u: jax.Array) -> jax.Array:
    """Applies σ to the channels of a device."""
    return layers.activate(u, spec.activation, spec.beta)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sums [t, k] over the devices that share the channels."""
    return x

  def scatter(self, x: jax.Array) -> jax.Array:
    """Sums [t, c] over these devices; each keeps its own channels."""
    return x


ONE_DEVICE = Devices()


def apply_block(
  spec: BlockSpec,
  weights: Weights,
  u: jax.Array,
  devices: Devices = ONE_DEVICE,
) -> jax.Array:
  """Computes v = M(y + Rᵀ(S − I)R y) + b with y = σ(u) + p (paper §3.1).

  The tokens u and v, [t, c], of an image lie together, row by row.
  """
  shape = (-1, *spec.grid, u.shape[-1])
  pos = jnp.expand_dims(weights.pos, 0).astype(u.dtype)
  y = (devices.activate(spec, u).reshape(shape) + pos).reshape(u.shape)

  if weights.r is None:  # k = 0: no channel moves.
    v = products.product(spec.numerics, y, weights.m)
  else:
    moved = devices.sum(products.product(spec.numerics, y, weights.r))  # R y
    # All k channels move, a quarter of them in each direction.
    on_grid = moved.reshape(-1, *spec.grid, moved.shape[-1])
    shifted = layers.spatial_shift(on_grid, 1 / 4, spec.padding)
    d = checkpoint_name(shifted.reshape(moved.shape) - moved, 'difference')
    v = products.mix(spec.numerics, y, d, weights.r, weights.m)
  return devices.scatter(v) + layers.per_channel(weights.bias, u)


class Block(nn.Module):
  """Block with its parameters, as a scan body: (u, None) → (v, None).

  Tokens are [t, c] between blocks. XLA would copy tokens [b, h, w, c] into
  another layout for the weight gradients.
  """

  spec: BlockSpec
  devices: Devices = ONE_DEVICE

  @nn.compact
  def __call__(self, u: jax.Array, _: None) -> tuple[jax.Array, None]:
    """Maps tokens [t, c] to [t, c]."""
    spec, c = self.spec, u.shape[-1]
    k = layers.moved_count(spec.shift_ratio, c)

    def matrix(name, rows, init):
      w = parametrizations.orthogonal_param(
        self, name, (rows, c), init, spec.parametrization
      )
      mapped = spec.parametrization != 'none'
      return checkpoint_name(w, 'mapped') if mapped else w

    zeros = nn.initializers.zeros
    pos = self.param('pos', zeros, (*spec.grid, 1), jnp.float32)
    weights = Weights(
      r=matrix('R', k, spec.r_init) if k else None,
      m=matrix('M', c, spec.m_init),
      bias=self.param('bias', zeros, (c,), jnp.float32),
      pos=pos if spec.position else jax.lax.stop_gradient(pos),
    )
    return self.devices.run(spec, weights, u), None


class Dense(nn.Module):
  """`activate(Q x + b)` of rows, as a scan body: (x, None) → (z, None).

  Q [d, n] has orthonormal rows. With `square`, Q is orthogonal of side
  max(d, n), and its corner [d, n] is applied, as if x were padded with zeros
  and the result cut: an isometry if d >= n, else 1-Lipschitz.
  """

  features: int
  q_init: str
  parametrization: str
  numerics: products.Numerics
  square: bool = False
  # The stem has none: the first block applies σ.
  activate: Callable[[jax.Array], jax.Array] = lambda y: y

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """Maps features [b, n] to [b, d]."""
    d, n = self.features, x.shape[-1]
    shape = (max(d, n),) * 2 if self.square else (d, n)
    q = parametrizations.orthogonal_param(
      self, 'Q', shape, self.q_init, self.parametrization
    )
    bias = self.param('bias', nn.initializers.zeros, (d,), jnp.float32)
    y = products.product(self.numerics, x, q[:d, :n])
    y += layers.per_channel(bias, y)
    return self.activate(y), None
