"""Products of the manifold step, at the precision that was asked for."""

import jax
from jax import lax
from jax.experimental.layout import Layout
from jax.experimental.layout import with_layout_constraint
import jax.numpy as jnp

_BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32


def product(
  x: jax.Array, y: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
  """Returns x @ y, at the same precision on every platform.

  XLA for CPUs takes `BF16_BF16_F32` and computes in float32 (jax 0.10.2): there
  the operands are rounded to bfloat16 by hand.

  Args:
    x: [..., m, n].
    y: [..., n, p].
    precision: as in `jnp.matmul`.

  Returns:
    [..., m, p].

  >>> one = jnp.full((1, 1), 1 + 2**-9)  # More bits than bfloat16 has.
  >>> product(one, one, 'highest').item() > 1
  True
  >>> product(one, one, _BFLOAT16).item()
  1.0
  """

  def plain(x, y):
    return jnp.matmul(x, y, precision=precision)

  if precision != _BFLOAT16 or x.dtype != jnp.float32:
    return plain(x, y)

  def rounded(x, y):
    x, y = (lax.reduce_precision(z, 8, 7) for z in (x, y))
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)

  return lax.platform_dependent(x, y, cpu=rounded, default=plain)


def transposed(x: jax.Array) -> jax.Array:
  """Returns xᵀ, on CPUs laid out by rows.

  Who reads it is then faster: xᵀ @ y of 512×512 matrices took 1.8 ms as one
  product of XLA's, and 1.6 with the transpose by rows first (two cores, jax
  0.10.2).

  Args:
    x: [m, n].

  Returns:
    [n, m].

  >>> transposed(jnp.arange(4.0).reshape(2, 2)).tolist()
  [[0.0, 2.0], [1.0, 3.0]]
  """
  return lax.platform_dependent(
    x, cpu=lambda x: by_rows(by_rows(x).T), default=jnp.transpose
  )


def by_rows(x: jax.Array) -> jax.Array:
  """Returns `x`, pinned to a layout by rows.

  The compiler may else lay a matrix out by columns, and transpose the whole
  stack on its way into a loop and out of it.

  >>> by_rows(jnp.eye(2)).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))
