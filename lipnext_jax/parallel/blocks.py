"""Communication of a LipNeXt block on a mesh.

    forward    R and M are gathered over 'fsdp' in the compute dtype; devices
               that share the channels add up R y and scatter M z
    backward   the transposes of these, then a sum over 'data'

No device ever holds all of a layer in float32, and gathered matrices are not
kept for the backward pass. `block.apply_block` does the mathematics.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from lipnext_jax.models import block as block_lib
from lipnext_jax.models import layers

BATCH_AXES = ('data', 'fsdp')  # Mesh axes that split the batch.
_TOKENS = PartitionSpec(BATCH_AXES, 'tensor')


@dataclasses.dataclass(frozen=True)
class Layout(block_lib.Devices):
  """Communication of blocks on a mesh.

  'fsdp' splits the rows of M and 'tensor' the channels. Together they split the
  columns of R, because its k rows need not divide by the devices.
  """

  mesh: jax.sharding.Mesh

  def constrain(self, u: jax.Array) -> jax.Array:
    """Constrains tokens [t, c] to the layout of the blocks."""
    return lax.with_sharding_constraint(u, NamedSharding(self.mesh, _TOKENS))

  def run(
    self, spec: block_lib.BlockSpec, weights: block_lib.Weights, u: jax.Array
  ) -> jax.Array:
    """Applies a block on every device to its tokens, with R and M gathered."""

    def on_device(weights, u):
      r, m, bias, pos = weights
      dtype = spec.numerics.dtype
      # Bias and p stay float32: their gradients are summed over devices.
      whole = block_lib.Weights(
        r=None if r is None else _gather(dtype, 1, r),
        m=_gather(dtype, 0, m),
        bias=lax.pcast(bias, BATCH_AXES, to='varying'),
        pos=lax.pcast(pos, (*BATCH_AXES, 'tensor'), to='varying'),
      )
      return block_lib.apply_block(spec, whole, u, self)

    columns = PartitionSpec(None, ('tensor', 'fsdp'))
    specs = block_lib.Weights(
      r=columns if weights.r is not None else None,
      m=PartitionSpec('fsdp', 'tensor'),
      bias=PartitionSpec('tensor'),
      pos=PartitionSpec(),
    )
    return jax.shard_map(
      on_device, mesh=self.mesh, in_specs=(specs, _TOKENS), out_specs=_TOKENS
    )(weights, u)

  def activate(self, spec: block_lib.BlockSpec, u: jax.Array) -> jax.Array:
    """Applies σ to the channels of a device: β-Abs, if devices share them."""
    shards = self.mesh.shape['tensor']
    if shards == 1:
      return layers.activate(u, spec.activation, spec.beta)
    channels = u.shape[-1] * shards
    first = lax.axis_index('tensor') * u.shape[-1]
    return layers.rectify(u, layers.channel_count(spec.beta, channels) - first)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sums [t, k] over the devices that share the channels."""
    if self.mesh.shape['tensor'] == 1:
      return x
    return lax.pcast(lax.psum(x, 'tensor'), 'tensor', to='varying')

  def scatter(self, x: jax.Array) -> jax.Array:
    """Sums [t, c] over these devices; each keeps its own channels."""
    if self.mesh.shape['tensor'] == 1:
      return x
    return lax.psum_scatter(x, 'tensor', scatter_dimension=1, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(dtype: Any, axis: int, w: jax.Array) -> jax.Array:
  """Gathers a matrix along `axis` over 'fsdp', sent in `dtype`."""
  w = lax.pcast(w, 'data', to='varying')
  sent = lax.all_gather(w.astype(dtype), 'fsdp', axis=axis, tiled=True)
  return sent.astype(w.dtype)


def _gather_fwd(dtype, axis, w):
  return _gather(dtype, axis, w), None


def _gather_bwd(dtype, axis, _, dw):
  """Sums the gradient in its own dtype; each device keeps its own part."""
  del dtype  # Only what is sent forward is narrow.
  dw = lax.psum_scatter(dw, 'fsdp', scatter_dimension=axis, tiled=True)
  return (lax.psum(dw, 'data'),)


_gather.defvjp(_gather_fwd, _gather_bwd)
