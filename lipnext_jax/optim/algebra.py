"""Matrices of the Lie algebra so(n), kept whole or each entry once.

A skew-symmetric Ω has n(n − 1)/2 numbers. Kept `packed`, so does what an inner
rule carries along of it: half the memory of its moments and of ΣΔ, and half the
traffic of its pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipnext_jax.optim import products


def skew(a: jax.Array) -> jax.Array:
  """(a − aᵀ)/2 of every matrix of [..., n, n].

  >>> skew(jnp.array([[1.0, 4.0], [2.0, 1.0]])).tolist()
  [[0.0, 1.0], [-1.0, 0.0]]
  """
  return (a - jnp.swapaxes(a, -1, -2)) / 2


def pack(a: jax.Array) -> jax.Array:
  """skew(a), the part above the diagonal folded at the middle row.

  The lower half of that part, turned by half a turn, fits below the diagonal of
  the upper half; what lies on the diagonal is 0. For odd n the middle row has
  its entries twice.

  Args:
    a: [n, n].

  Returns:
    [⌈n/2⌉, n].

  >>> pack(jnp.array([[0.0, 2, 4, 6], [0, 0, 8, 10], [0, 0, 0, 12], [0] * 4]))
  Array([[0., 1., 2., 3.],
         [6., 0., 4., 5.]], dtype=float32)
  """
  half = rows(len(a))
  above = jnp.triu(skew(a), 1)
  return (above + above[::-1, ::-1])[:half]


def unpack(p: jax.Array) -> jax.Array:
  """The skew-symmetric [n, n] that `pack` made [⌈n/2⌉, n] of, whatever is in p.

  >>> a = jnp.arange(9.0).reshape(3, 3)
  >>> bool(jnp.all(unpack(pack(a)) == skew(a)))
  True
  """
  turned = p[::-1, ::-1][2 * len(p) - p.shape[1] :]
  above = jnp.triu(jnp.concatenate([p, turned]), 1)
  return above - products.transposed(above)


def rows(n: int) -> int:
  """Of what `pack` makes of [n, n]."""
  return (n + 1) // 2


class Algebra(NamedTuple):
  """A way to keep Ω and what is made of it."""

  rows: Callable[[int], int]  # n → of what is kept of [n, n]; it has n columns.
  store: Callable[[jax.Array], jax.Array]  # [n, n] → skew part, [rows, n].
  load: Callable[[jax.Array], jax.Array]  # [rows, n] → skew-symmetric [n, n].


ALGEBRAS = {
  'whole': Algebra(lambda n: n, skew, skew),
  'packed': Algebra(rows, pack, unpack),
}
