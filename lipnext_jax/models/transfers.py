"""Products and gathers whose gradients stay wide until they are summed.

What the blocks of `sharded` are made of: operands travel and are multiplied in
a narrow dtype; the gradient of a weight leaves its product in the dtype of the
weight, and is summed over devices in it.
"""

import functools
from typing import Any

import jax
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def product(
  dtype: Any,
  precision: lax.PrecisionLike,
  out_dtype: Any,
  x: jax.Array,
  w: jax.Array,
) -> jax.Array:
  """x wᵀ from operands in `dtype`; gradients in the dtypes of x and w.

  A plain product of narrow operands would round the weights' gradient to
  their dtype before it is summed over devices.

  Args:
    dtype: of the operands, and of those of both gradients.
    precision: of all three products.
    out_dtype: of the result.
    x: [..., c].
    w: [d, c].

  Returns:
    [..., d].

  >>> import jax.numpy as jnp
  >>> x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((4, 3))
  >>> product(jnp.bfloat16, None, jnp.bfloat16, x, w).shape
  (2, 4)
  """
  return _dot(
    x.astype(dtype), w.astype(dtype), x.ndim - 1, 1, precision, out_dtype
  )


def _product_fwd(dtype, precision, out_dtype, x, w):
  return product(dtype, precision, out_dtype, x, w), (x, w)


def _product_bwd(dtype, precision, out_dtype, saved, dy):
  del out_dtype  # Is that of dy.
  x, w = saved
  dy = dy.astype(dtype)
  dx = _dot(dy, w.astype(dtype), dy.ndim - 1, 0, precision, x.dtype)
  tokens = tuple(range(x.ndim - 1))
  dw = _dot(dy, x.astype(dtype), tokens, tokens, precision, w.dtype)
  return dx, dw


product.defvjp(_product_fwd, _product_bwd)


def _dot(x, y, x_axes, y_axes, precision, out_dtype):
  """Contracts the axes; no others are shared."""
  pair = [a if isinstance(a, tuple) else (a,) for a in (x_axes, y_axes)]

  def contract(x, y):
    return lax.dot_general(
      x,
      y,
      ((pair[0], pair[1]), ((), ())),
      precision=precision,
      preferred_element_type=out_dtype,
    )

  if x.dtype == out_dtype:
    return contract(x, y)

  def widened(x, y):
    return contract(x.astype(out_dtype), y.astype(out_dtype))

  # XLA has no such product on CPUs for every shape.
  return lax.platform_dependent(x, y, cpu=widened, default=contract)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def gather(
  dtype: Any, replicas: tuple[str, ...], axis: str, w: jax.Array
) -> jax.Array:
  """All rows of w over `axis`, sent in `dtype`, in the dtype of w again.

  Backward, the gradient is summed in the dtype of w: scattered over `axis`
  first, so that only a device's own rows go on to the `replicas`.

  Args:
    dtype: of what is sent.
    replicas: mesh axes over which w does not vary, but its gradient does.
    axis: the mesh axis that splits the rows.
    w: [d, c], a device's own rows.

  Returns:
    [d·devices, c], the dtype of `w`.

  >>> mesh = jax.make_mesh((1,), ('f',), (jax.sharding.AxisType.Auto,))
  >>> split = jax.sharding.PartitionSpec('f')
  >>> whole = jax.shard_map(lambda w: gather('bfloat16', (), 'f', w), mesh=mesh,
  ...   in_specs=split, out_specs=split)(jax.numpy.ones((4, 3)))
  >>> whole.shape, whole.dtype.name
  ((4, 3), 'float32')
  """
  if replicas:
    w = lax.pcast(w, replicas, to='varying')
  sent = lax.all_gather(w.astype(dtype), axis, axis=0, tiled=True)
  return sent.astype(w.dtype)


def _gather_fwd(dtype, replicas, axis, w):
  return gather(dtype, replicas, axis, w), None


def _gather_bwd(dtype, replicas, axis, _, dw):
  del dtype  # Of the way there.
  dw = lax.psum_scatter(dw, axis, scatter_dimension=0, tiled=True)
  return (lax.psum(dw, replicas) if replicas else dw,)


gather.defvjp(_gather_fwd, _gather_bwd)
