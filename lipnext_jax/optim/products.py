"""Products of the manifold step, at the precision that was asked for."""

import jax
from jax import lax
import jax.numpy as jnp

_BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32


def product(
  x: jax.Array, y: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
  """x @ y; bfloat16 operands with float32 sums on CPUs, too.

  XLA for CPUs takes `BF16_BF16_F32` and computes in float32 (jax 0.10.2). The
  operands are rounded by hand there, so that a recipe is the same everywhere.

  Args:
    x: [..., m, n].
    y: [..., n, p].
    precision: as of `jnp.matmul`.

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
