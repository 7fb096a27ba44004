"""What one matrix does in a step: before the inner rule, and after it.

`tangent` is XᵀG, whose skew part Ω the inner rule is given; `turn` what most
steps add to X, X·(FastExp(Δ) − I); `special` what those add at which lookahead
may sync or the retraction be due.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import products


def tangent(
  x: jax.Array, g: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
  """XᵀG, of which Ω is the skew part; of tall matrices the transposed ones'.

  Args:
    x: [m, n].
    g: [m, n], or its first rows where the others are zero and m <= n.
    precision: of the product.

  Returns:
    [N, N], N = max(m, n).

  >>> tangent(jnp.eye(3), jnp.ones((1, 3)), None).tolist()
  [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
  """
  if x.shape[0] > x.shape[1]:
    x, g = x.T, g.T
  return products.transposed_product(x[: len(g)], g, precision)


class Flags(NamedTuple):
  """What every matrix of a step shares."""

  retract: jax.Array | None  # Shape (): bool, whether; None: never.
  sync: jax.Array | None  # Shape (): bool, of the lookahead; None: without.
  alpha: jax.typing.ArrayLike  # Of the lookahead.


class Moved(NamedTuple):
  """One leaf after a step; `slow` and `total` are None without lookahead."""

  update: jax.Array  # Shape [..., m, n].
  slow: jax.Array | None = None  # Shape [..., m, n].
  total: jax.Array | None = None  # As Δ is kept.


def turn(
  x: jax.Array,
  delta: jax.Array,
  *,
  load: Callable[[jax.Array], jax.Array],
  expm1: Callable[[jax.Array], jax.Array],
  precision: lax.PrecisionLike,
) -> jax.Array:
  """X·(FastExp(Δ) − I), or its like for tall X: a plain step.

  Args:
    x: [m, n].
    delta: Δ as it is kept, see `algebra`.
    load: of the way it is kept.
    expm1: skew-symmetric [N, N] → its FastExp − I.
    precision: of the product with X.

  >>> turn(jnp.eye(2), jnp.zeros((2, 2)), load=lambda d: d,
  ...   expm1=lambda a: a, precision=None).shape
  (2, 2)
  """
  # Made skew here and not in the inner rule's pass over the stacks, which could
  # not write over its moments while another entry still needs them.
  delta = load(delta)
  if x.shape[0] > x.shape[1]:
    # (FastExp(Δ)·X)ᵀ = Xᵀ·FastExp(−Δ): the wide case, transposed.
    return products.product(x.T, expm1(delta), precision).T
  return products.product(x, expm1(delta), precision)


def special(
  flags: Flags,
  x: jax.Array,
  delta: jax.Array,
  slow: jax.Array | None = None,
  total: jax.Array | None = None,
  *,
  turn: Callable[[jax.Array, jax.Array], jax.Array],
  retract: Callable[[jax.Array], jax.Array],
) -> Moved:
  """A step at which the lookahead may sync and the retraction be due.

  base·(FastExp(generator) − I) + (base − x), and with lookahead also the new
  X_slow and ΣΔ.

  Args:
    flags: what is due.
    x: [m, n].
    delta: Δ as it is kept.
    slow: X_slow [m, n], or None without lookahead.
    total: ΣΔ as it is kept, Δ in it; None without lookahead.
    turn: X, Δ → X·(FastExp(Δ) − I).
    retract: [m, n] → the nearest matrix on the manifold.

  >>> flags = Flags(retract=None, sync=jnp.array(True), alpha=0.5)
  >>> one = jnp.ones((1, 1))
  >>> special(flags, 3 * one, one, 2 * one, 4 * one, retract=None,
  ...   turn=lambda x, d: d)  # X_slow + α ΣΔ = 4, one more than X was.
  Moved(update=Array([[1.]], dtype=float32), slow=Array([[4.]], \
dtype=float32), total=Array([[0.]], dtype=float32))
  """
  if slow is None or total is None or flags.sync is None:
    moved = turn(x, delta)
    if flags.retract is None:
      return Moved(moved)
    back = lax.cond(
      flags.retract, lambda: retract(x + moved) - x, lambda: moved
    )
    return Moved(back)

  sync = flags.sync
  base = jnp.where(sync, slow, x)
  alpha = jnp.asarray(flags.alpha, x.dtype)
  moved = turn(base, jnp.where(sync, alpha * total, delta))

  def plain():
    return (base - x) + moved, jnp.where(sync, base + moved, slow)

  def retracted():
    new = retract(base + moved)
    return new - x, jnp.where(sync, new, retract(slow))

  if flags.retract is None:
    update, new_slow = plain()
  else:
    update, new_slow = lax.cond(flags.retract, retracted, plain)
  return Moved(update, new_slow, jnp.where(sync, 0, total))
