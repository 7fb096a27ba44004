"""Packed storage of skew-symmetric matrices, the Lie algebra so(n).

Only n(n − 1)/2 entries of a skew-symmetric matrix are independent. Packing them
halves the memory of an optimizer's moments.
"""

import jax
import jax.numpy as jnp


def pack(a: jax.Array) -> jax.Array:
  """Packs skew(a) = (a − aᵀ)/2, [n, n], into ⌈n/2⌉ rows.

  Of the part above the diagonal, the upper half stays in place. The lower half,
  rotated by 180°, fills the places below the diagonal. The diagonal is 0, and
  for odd n the middle row holds each of its entries twice.

  >>> pack(jnp.array([[0.0, 2, 4, 6], [0, 0, 8, 10], [0, 0, 0, 12], [0] * 4]))
  Array([[0., 1., 2., 3.],
         [6., 0., 4., 5.]], dtype=float32)
  """
  above = jnp.triu((a - a.T) / 2, 1)
  return (above + above[::-1, ::-1])[: (len(a) + 1) // 2]


def unpack(packed: jax.Array) -> jax.Array:
  """Returns the skew-symmetric matrix [n, n] of any array [⌈n/2⌉, n].

  >>> a = jnp.arange(9.0).reshape(3, 3)
  >>> bool(jnp.all(unpack(pack(a)) == (a - a.T) / 2))
  True
  """
  rotated = packed[::-1, ::-1][2 * len(packed) - packed.shape[1] :]
  above = jnp.triu(jnp.concatenate([packed, rotated]), 1)
  return above - above.T
