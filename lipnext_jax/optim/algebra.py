"""Skew-symmetric matrices, the Lie algebra so(n), stored packed.

Only n(n − 1)/2 entries of a skew-symmetric matrix are independent. Packing them
halves the memory of the inner rule's moments and of ΣΔ.
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
  """Packs skew(a) [n, n] into [packed_rows(n), n], every entry once.

  The upper half of the part above the diagonal stays in place; the lower half,
  turned by 180°, goes below the diagonal. The diagonal itself is 0, and for odd
  n the middle row holds its entries twice.

  >>> pack(jnp.array([[0.0, 2, 4, 6], [0, 0, 8, 10], [0, 0, 0, 12], [0] * 4]))
  Array([[0., 1., 2., 3.],
         [6., 0., 4., 5.]], dtype=float32)
  """
  above = jnp.triu(skew(a), 1)
  return (above + above[::-1, ::-1])[: packed_rows(len(a))]


def unpack(p: jax.Array) -> jax.Array:
  """Unpacks [packed_rows(n), n] into [n, n], skew-symmetric for any `p`.

  >>> a = jnp.arange(9.0).reshape(3, 3)
  >>> bool(jnp.all(unpack(pack(a)) == skew(a)))
  True
  """
  turned = p[::-1, ::-1][2 * len(p) - p.shape[1] :]
  above = jnp.triu(jnp.concatenate([p, turned]), 1)
  return above - products.transposed(above)


def packed_rows(n: int) -> int:
  """Returns the row count of the packed form of an n×n matrix, ⌈n/2⌉."""
  return (n + 1) // 2
