"""One LipNeXt block over many devices, every transfer written out.

    X = σ(u),   v = P S( R (X + p) ) + b,   P = M Rᵀ

No device ever holds a layer's float32 matrices: R is gathered from its rows in
the compute dtype, P is formed row by row (each device its own rows) and
gathered likewise. With `width` shards the channels are split as well: a device
has some of R's rows, the columns of P that answer to them, and its part of X.

    forward    all-gather R, P; with width also M's rows and X, and one
               reduce-scatter of the output
    backward   their transposes: reduce-scatters of the gradients, then an
               all-reduce over the axes that split the batch alone

Which mesh axes do that arrives as data, in a `Layout`. Shapes: `b` batch,
`h w` token grid, `c` channels, `t` width shards, `f` row shards.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lipnext_jax.models import forms
from lipnext_jax.models import layers
from lipnext_jax.models import transfers


@dataclasses.dataclass(frozen=True)
class Layout:
  """How blocks lie on a mesh.

  Attributes:
    mesh: the devices.
    replicas: axes that split the batch alone.
    rows: the axis that splits the batch and the rows of R and M.
    width: the axis that splits the channels, and the rows once more.
  """

  mesh: jax.sharding.Mesh
  replicas: tuple[str, ...]
  rows: str
  width: str

  @property
  def matrix(self) -> PartitionSpec:
    """Of R and M, [c, c]."""
    return PartitionSpec((self.rows, self.width), None)

  @property
  def tokens(self) -> PartitionSpec:
    """Of X, [b, h, w, c]."""
    return PartitionSpec((*self.replicas, self.rows), None, None, self.width)

  @property
  def row_shards(self) -> int:
    """Devices that share the rows and not the channels, f."""
    return self.mesh.shape[self.rows]

  @property
  def width_shards(self) -> int:
    """Devices that share the channels, t."""
    return self.mesh.shape[self.width]


def constrain(layout: Layout, x: jax.Array) -> jax.Array:
  """Tokens [b, h, w, c], laid out as blocks want them."""
  sharding = jax.sharding.NamedSharding(layout.mesh, layout.tokens)
  return lax.with_sharding_constraint(x, sharding)


def block(
  layout: Layout,
  u: jax.Array,
  r: jax.Array,
  m: jax.Array,
  bias: jax.Array,
  pos: jax.Array,
  *,
  shift_ratio: float,
  activation: str,
  beta: float,
  padding: str,
  dtype: Any,
  precision: lax.PrecisionLike,
  form: str,
) -> jax.Array:
  """v of one block; the same function as on one device, up to rounding.

  The dtype of `r` and `m` is the one in which their gradients are summed over
  devices; what is gathered is in `dtype`.

  Args:
    layout: where everything lies.
    u: [b, h, w, c], `dtype`.
    r: [c, c].
    m: [c, c].
    bias: [c] float32.
    pos: [h, w, 1] float32.
    shift_ratio: see `layers.spatial_shift`.
    activation: see `layers.activate`; 'minmax' pairs channels that width
      sharding would part.
    beta: see `layers.beta_abs`.
    padding: see `layers.spatial_shift`.
    dtype: of the products' operands and of the tokens.
    precision: of the products.
    form: see `forms`, any but 'auto'. Width sharding knows 'fused' alone.

  >>> auto = (jax.sharding.AxisType.Auto,) * 3
  >>> mesh = jax.make_mesh((1, 1, 1), ('d', 'f', 't'), auto)
  >>> layout = Layout(mesh, ('d',), 'f', 't')
  >>> u, eye = -jnp.ones((1, 2, 2, 4)), jnp.eye(4)
  >>> v = block(layout, u, eye, -eye, jnp.zeros(4), jnp.zeros((2, 2, 1)),
  ...   shift_ratio=0.25, activation='beta_abs', beta=0.5, padding='circular',
  ...   dtype=jnp.float32, precision=None, form='fused')
  >>> v[0, 0, 0].tolist()
  [-1.0, -1.0, 1.0, 1.0]
  """
  body = functools.partial(
    _block,
    layout,
    shift_ratio=shift_ratio,
    activation=activation,
    beta=beta,
    padding=padding,
    dtype=dtype,
    precision=precision,
    form='fused' if layout.width_shards > 1 else form,
  )
  return jax.shard_map(
    body,
    mesh=layout.mesh,
    in_specs=(
      layout.tokens,
      layout.matrix,
      layout.matrix,
      PartitionSpec(layout.width),
      PartitionSpec(),
    ),
    out_specs=layout.tokens,
  )(u, r, m, bias, pos)


def token_product(
  x: jax.Array, w: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
  """y = x Wᵀ for token rows x [..., c] and W [d, c] float32 → [..., d].

  In the dtype of x; the gradient of W stays in float32 until it is summed
  over devices.

  >>> x = jnp.ones((2, 3), jnp.bfloat16)
  >>> y = token_product(x, jnp.ones((4, 3)), None)
  >>> y.shape, y.dtype.name
  ((2, 4), 'bfloat16')
  """
  return transfers.product(x.dtype, precision, x.dtype, x, w)


def keep_all_but_gathers(primitive: Any, *_: Any, **params: Any) -> bool:
  """What `remat='none'` means here, as a policy of `jax.checkpoint`.

  Kept, gathered matrices would add up to the whole model on every device.
  """
  return lax.all_gather_p not in _primitives(primitive, params)


def _primitives(primitive, params):
  """What a step of a block does; policies see gathers and products whole."""
  inner = params.get('call_jaxpr')
  if inner is None:
    return {primitive}
  return {eqn.primitive for eqn in inner.jaxpr.eqns}


def _block(
  layout, u, r, m, bias, pos, *, shift_ratio, activation, beta, padding,
  dtype, precision, form,
):  # fmt: skip
  rows, width = layout.rows, layout.width
  over = (*layout.replicas, rows)
  product = functools.partial(transfers.product, dtype, precision, dtype)
  gather = functools.partial(transfers.gather, dtype)
  # In float32: what is summed over devices in backward is summed in it.
  pos = lax.pcast(pos, (*over, width), to='varying').astype(dtype)
  bias = lax.pcast(bias, over, to='varying').astype(dtype)

  x = _activate(layout, u, activation, beta) + jnp.expand_dims(pos, 0)
  if layout.width_shards > 1:
    x = lax.all_gather(x, width, axis=3, tiled=True)
    m = gather((), width, m)  # [c/f, c]
  m = lax.pcast(m, layout.replicas, to='varying')
  r = gather(layout.replicas, rows, r)  # [c/t, c]
  # Not in `dtype`: what is summed over devices stays wide, and is little work.
  matrix_product = functools.partial(
    transfers.product, r.dtype, precision, r.dtype
  )
  if form != 'fused':
    y = forms.mix(
      form,
      x,
      r,
      gather((), rows, m),
      grid=u.shape[1:3],
      shift_ratio=shift_ratio,
      padding=padding,
      product=product,
      matrix_product=matrix_product,
    )
    return y + layers.per_channel(bias, y)
  y = product(x, r)  # [b, h, w, c/t]
  if layout.width_shards > 1:
    channel = _shifted_channels(layout, x.shape[-1])
    y = _masked_shift(y, channel, x.shape[-1], shift_ratio, padding)
  else:
    y = layers.spatial_shift(y, shift_ratio, padding)
  y = checkpoint_name(y, 'shifted')
  # Each device forms its own rows of P; others' are gathered again in backward.
  p = checkpoint_name(matrix_product(m, r), 'MRt')  # [c/f, c/t]
  y = product(y, gather((), rows, p))
  if layout.width_shards > 1:
    y = lax.psum_scatter(y, width, scatter_dimension=3, tiled=True)
  return y + layers.per_channel(bias, y)


def _activate(layout, u, activation, beta):
  """`layers.activate` on a device's own channels."""
  if layout.width_shards == 1:
    return layers.activate(u, activation, beta)
  if activation != 'beta_abs':
    raise ValueError(f'{activation=} cannot be split over channels.')
  first = lax.axis_index(layout.width) * u.shape[-1]
  channel = first + lax.broadcasted_iota(jnp.int32, u.shape, 3)
  rectified = layers.channel_count(beta, u.shape[-1] * layout.width_shards)
  return jnp.where(channel < rectified, jnp.abs(u), u)


def _shifted_channels(layout: Layout, channels: int) -> jax.Array:
  """Which of all channels this device has between R and P, [c/t].

  Rows are dealt out in c/(f·t) at a time, first over `width`.
  """
  part = channels // (layout.row_shards * layout.width_shards)
  mine = lax.axis_index(layout.width)
  parts = jnp.arange(layout.row_shards) * layout.width_shards + mine
  return (parts[:, None] * part + jnp.arange(part)[None, :]).reshape(-1)


def _masked_shift(x, channel, channels, shift_ratio, padding):
  """`layers.spatial_shift` on some of `channels`, by what they are."""
  k = layers.channel_count(shift_ratio, channels)
  channel = jnp.expand_dims(channel, tuple(range(x.ndim - 1)))
  out = x
  for group, (axis, step) in enumerate(((-3, -1), (-3, 1), (-2, -1), (-2, 1))):
    moved = jnp.roll(x, step, axis)
    if padding == 'zero':  # What re-enters on the other side is dropped.
      token = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim + axis)
      edge = 0 if step > 0 else x.shape[axis] - 1
      moved = jnp.where(token == edge, 0, moved)
    inside = (channel >= group * k) & (channel < (group + 1) * k)
    out = jnp.where(inside, moved, out)
  return out
