"""Communication of a LipNeXt block on a mesh.

    forward    R and M are gathered over `rows` in the compute dtype; devices
               that share the channels add up R y and scatter M z
    backward   the transposes of these, then a sum over `replicas`

No device ever holds all of a layer in float32, and gathered matrices are not
kept for the backward pass. `block.apply_block` does the mathematics, and a
`Layout` names the mesh axes.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from lipnext_jax.models import block as block_lib
from lipnext_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Layout(block_lib.Devices):
  """Layout and communication of blocks on a mesh.

  `width` and `rows` together split the columns of R, because its k rows need
  not divide by the devices.
  """

  mesh: jax.sharding.Mesh
  replicas: tuple[str, ...]  # Axes that split the batch alone.
  rows: str  # Splits the batch, the rows of M and the columns of R.
  width: str  # Splits the channels.

  @property
  def tokens(self) -> PartitionSpec:
    """The spec of tokens [t, c]."""
    return PartitionSpec((*self.replicas, self.rows), self.width)

  @property
  def width_shards(self) -> int:
    """Number of devices that share the channels."""
    return self.mesh.shape[self.width]

  def constrain(self, u: jax.Array) -> jax.Array:
    """Constrains tokens [t, c] to the layout of the blocks."""
    sharding = jax.sharding.NamedSharding(self.mesh, self.tokens)
    return lax.with_sharding_constraint(u, sharding)

  def run(
    self,
    block: Callable[[block_lib.Weights, jax.Array], jax.Array],
    weights: block_lib.Weights,
    u: jax.Array,
  ) -> jax.Array:
    """Applies `block` on every device to its part of the arrays."""
    columns = PartitionSpec(None, (self.width, self.rows))
    specs = block_lib.Weights(
      r=columns if weights.r is not None else None,
      m=PartitionSpec(self.rows, self.width),
      bias=PartitionSpec(self.width),
      pos=PartitionSpec(),
    )
    return jax.shard_map(
      block,
      mesh=self.mesh,
      in_specs=(specs, self.tokens),
      out_specs=self.tokens,
    )(weights, u)

  def gather(
    self, spec: block_lib.BlockSpec, weights: block_lib.Weights
  ) -> block_lib.Weights:
    """Gathers R and M of a layer over `rows`."""
    r, m, bias, pos = weights
    dtype = spec.numerics.dtype
    # Bias and p stay float32: their gradients are summed over devices.
    over = (*self.replicas, self.rows)
    return block_lib.Weights(
      r=None if r is None else gather(dtype, self.replicas, self.rows, 1, r),
      m=gather(dtype, self.replicas, self.rows, 0, m),
      bias=lax.pcast(bias, over, to='varying'),
      pos=lax.pcast(pos, (*over, self.width), to='varying'),
    )

  def activate(self, spec: block_lib.BlockSpec, u: jax.Array) -> jax.Array:
    """Applies σ to the channels of a device; MinMax would need all of them."""
    if self.width_shards == 1:
      return layers.activate(u, spec.activation, spec.beta)
    if spec.activation != 'beta_abs':
      raise ValueError(f'{spec.activation=} cannot be split over channels.')
    rectified = layers.channel_count(spec.beta, u.shape[-1] * self.width_shards)
    first = lax.axis_index(self.width) * u.shape[-1]
    return layers.rectify(u, rectified - first)

  def sum(self, x: jax.Array) -> jax.Array:
    """Sums [t, k] over the devices that share the channels."""
    if self.width_shards == 1:
      return x
    return lax.pcast(lax.psum(x, self.width), self.width, to='varying')

  def scatter(self, x: jax.Array) -> jax.Array:
    """Sums [t, c] over these devices; each keeps its own channels."""
    if self.width_shards == 1:
      return x
    return lax.psum_scatter(x, self.width, scatter_dimension=1, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def gather(
  dtype: Any, replicas: tuple[str, ...], name: str, axis: int, w: jax.Array
) -> jax.Array:
  """Gathers a matrix along `axis`, sent in `dtype`.

  The gradient is summed in the dtype of `w`: over the mesh axis first, which
  leaves each device its own part, then over the replicas.

  Args:
    dtype: dtype in which `w` is sent.
    replicas: mesh axes over which the gradient of `w` varies, and `w` does not.
    name: mesh axis that splits `w`.
    axis: array axis that it splits.
    w: part of a device.

  Returns:
    The whole array along `axis`, in the dtype of `w`.

  >>> mesh = jax.make_mesh((1,), ('f',), (jax.sharding.AxisType.Auto,))
  >>> split = PartitionSpec('f')
  >>> whole = jax.shard_map(lambda w: gather('bfloat16', (), 'f', 0, w),
  ...   mesh=mesh, in_specs=split, out_specs=split)(jax.numpy.ones((4, 3)))
  >>> whole.shape, whole.dtype.name
  ((4, 3), 'float32')
  """
  if replicas:
    w = lax.pcast(w, replicas, to='varying')
  sent = lax.all_gather(w.astype(dtype), name, axis=axis, tiled=True)
  return sent.astype(w.dtype)


def _gather_fwd(dtype, replicas, name, axis, w):
  return gather(dtype, replicas, name, axis, w), None


def _gather_bwd(dtype, replicas, name, axis, _, dw):
  del dtype  # Only what is sent forward is narrow.
  dw = lax.psum_scatter(dw, name, scatter_dimension=axis, tiled=True)
  return (lax.psum(dw, replicas) if replicas else dw,)


gather.defvjp(_gather_fwd, _gather_bwd)
