"""Skew-symmetric matrices, the Lie algebra so(n), stored packed.

A skew-symmetric matrix has n(n − 1)/2 numbers. Packed, so has all that an inner
rule keeps of it: half of the memory of its moments and of ΣΔ.
"""

import jax
import jax.numpy as jnp

from lipnext_jax.optim import products


def skew(a: jax.Array) -> jax.Array:
  """Returns the skew-symmetric part (a − aᵀ)/2 of every matrix [..., n, n].

  >>> skew(jnp.array([[1.0, 4.0], [2.0, 1.0]])).tolist()
  [[0.0, 1.0], [-1.0, 0.0]]
  """
  return (a - jnp.swapaxes(a, -1, -2)) / 2


def pack(a: jax.Array) -> jax.Array:
  """Stores every entry of skew(a) once.

  The lower half of the part above the diagonal, turned by half a turn, fits
  below the diagonal of the upper half. The diagonal itself is 0, and for odd n
  the middle row has its entries twice.

  Args:
    a: [n, n].

  Returns:
    [packed_rows(n), n].

  >>> pack(jnp.array([[0.0, 2, 4, 6], [0, 0, 8, 10], [0, 0, 0, 12], [0] * 4]))
  Array([[0., 1., 2., 3.],
         [6., 0., 4., 5.]], dtype=float32)
  """
  above = jnp.triu(skew(a), 1)
  return (above + above[::-1, ::-1])[: packed_rows(len(a))]


def unpack(p: jax.Array) -> jax.Array:
  """Restores the matrix that `pack` stored; skew-symmetric for any `p`.

  Args:
    p: [packed_rows(n), n].

  Returns:
    [n, n].

  >>> a = jnp.arange(9.0).reshape(3, 3)
  >>> bool(jnp.all(unpack(pack(a)) == skew(a)))
  True
  """
  turned = p[::-1, ::-1][2 * len(p) - p.shape[1] :]
  above = jnp.triu(jnp.concatenate([p, turned]), 1)
  return above - products.transposed(above)


def packed_rows(n: int) -> int:
  """Row count of the packed form of an n×n matrix: ⌈n/2⌉.

  >>> packed_rows(5)
  3
  """
  return (n + 1) // 2
