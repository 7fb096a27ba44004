"""The stem of LipNeXt and the block that it repeats (paper §3.1).

The paper's block is Z = σ( M Rᵀ S( R (X + p) ) + b ). The spatial shift S moves
k = 4⌊αc⌋ of the channels, so only the k rows of R that answer to them matter:

    RᵀSR = I + Rᵀ(S − I)R,    R [k, c] with orthonormal rows,

and these are what is stored. Blocks hand on v, to which σ is still to be
applied, because the backward pass needs the signs that σ removes.

Shapes: `t` tokens, t = b·h·w; `b` batch, `h w` token grid, `c` channels.
"""

from collections.abc import Callable
import dataclasses
import functools
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
  """The options that the blocks of a network share, explained at `LipNeXt`."""

  grid: tuple[int, int]  # (h, w).
  shift_ratio: float
  padding: str
  activation: str
  beta: float
  position: bool
  r_init: str
  m_init: str
  parametrization: str
  numerics: products.Numerics  # Of all products.


class Weights(NamedTuple):
  """One block's parameters (float32), or one value for each, like a layout."""

  r: Any  # Shape [k, c], orthonormal rows; None if k = 0.
  m: Any  # Shape [c, c], orthogonal.
  bias: Any  # Shape [c].
  pos: Any  # Shape [h, w, 1].


class Devices:
  """The communication of a block; a single device needs none.

  `sharded.Layout` is the same for a mesh. Devices that share the channels have
  c/n of them each, and the columns of R and M that answer to these.
  """

  def run(
    self,
    block: Callable[[Weights, jax.Array], jax.Array],
    weights: Weights,
    u: jax.Array,
  ) -> jax.Array:
    """Applies `block` to whole arrays."""
    return block(weights, u)

  def gather(self, spec: BlockSpec, weights: Weights) -> Weights:
    """Fetches the rows and columns of R and M that a device needs."""
    return weights

  def activate(self, spec: BlockSpec, u: jax.Array) -> jax.Array:
    """Applies σ to a device's own channels."""
    return layers.activate(u, spec.activation, spec.beta)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sums [t, k] over the devices that share the channels."""
    return x

  def scatter(self, x: jax.Array) -> jax.Array:
    """Sums [t, c] likewise, and keeps a device's own channels."""
    return x


ONE_DEVICE = Devices()


def apply_block(
  spec: BlockSpec,
  weights: Weights,
  u: jax.Array,
  devices: Devices = ONE_DEVICE,
) -> jax.Array:
  """Computes v = M(y + Rᵀ(S − I)R y) + b with y = σ(u) + p (paper §3.1).

  Args:
    spec: the options of all blocks.
    weights: R, M, bias and p of this block.
    u: [t, c], tokens of whole grids, image by image.
    devices: the communication between the devices of a mesh.

  Returns:
    v, [t, c].
  """
  shape = (-1, *spec.grid, u.shape[-1])
  weights = devices.gather(spec, weights)
  pos = jnp.expand_dims(weights.pos, 0).astype(u.dtype)
  y = (devices.activate(spec, u).reshape(shape) + pos).reshape(u.shape)

  if weights.r is None:  # Nothing moves.
    v = products.product(spec.numerics, y, weights.m)
  else:
    moved = devices.sum(products.product(spec.numerics, y, weights.r))  # R y
    # All of these channels move, a quarter of them in each direction.
    on_grid = moved.reshape(-1, *spec.grid, moved.shape[-1])
    shifted = layers.spatial_shift(on_grid, 1 / 4, spec.padding)
    d = checkpoint_name(shifted.reshape(moved.shape) - moved, 'difference')
    v = products.mix(spec.numerics, y, d, weights.r, weights.m)
  return devices.scatter(v) + layers.per_channel(weights.bias, u)


class Block(nn.Module):
  """`apply_block` and its parameters, as a scan body: (u, None) → (v, None).

  Between blocks tokens lie as [t, c]: with more axes the compiler is free to
  lay them out otherwise for the weight gradients, and copies them all.
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
    block = functools.partial(apply_block, spec, devices=self.devices)
    return self.devices.run(block, weights, u), None


class Stem(nn.Module):
  """Patches → zero-padded to n → one orthogonal [n, n] matrix → c channels.

  Isometric when patch²·channels <= c; otherwise the cut to c outputs makes it
  1-Lipschitz. Then the bias; the first block applies σ.
  """

  width: int
  patch_size: int
  numerics: products.Numerics
  q_init: str
  parametrization: str

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps images [b, H, W, ch] to tokens [b, h, w, c]."""
    x = layers.patchify(images, self.patch_size).astype(self.numerics.dtype)
    values = x.shape[-1]
    n = max(self.width, values)
    q = parametrizations.orthogonal_param(
      self, 'Q', (n, n), self.q_init, self.parametrization
    )
    bias = self.param('bias', nn.initializers.zeros, (self.width,), jnp.float32)
    # Zero-padding x to n and cutting y to c touches only this corner of Q.
    corner = q[: self.width, :values]
    y = products.product(self.numerics, x.reshape(-1, values), corner)
    y += layers.per_channel(bias, y)
    return y.reshape(*x.shape[:-1], self.width)
