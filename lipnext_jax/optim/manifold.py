"""Any elementwise, odd optax rule, lifted to the orthogonal group (paper §3.2).

For X ∈ O(n) with Euclidean gradient G, in the (left-trivialised) Lie algebra:

    Ω = skew(XᵀG) = (XᵀG − GᵀX)/2
    Δ = inner.update(Ω)              any optax rule; sign and rate included
    X ← X·FastExp(Δ)

and, with manifold lookahead, every k steps (paper §3.2(b))

    X_slow ← X_slow·FastExp(α Σ Δ),   X ← X_slow,   Σ Δ ← 0.

Both are the one step  base·FastExp(generator), with (X, Δ) or (X_slow, αΣΔ) in
it. The emitted update is base·(FastExp − I) + (base − X), so that plain
`optax.apply_updates` lands on the manifold.
"""

from collections.abc import Sequence
import functools
import operator
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import algebra as algebra_lib
from lipnext_jax.optim import checks
from lipnext_jax.optim import exponential
from lipnext_jax.optim import retraction as retraction_lib
from lipnext_jax.optim import stack
from lipnext_jax.optim import steps

# Named scope of the loop over steps that sync or retract, for those who count.
SPECIAL = 'special_step'


class OrthogonalState(NamedTuple):
  """State of `orthogonal`; `slow` and `total` are None without lookahead."""

  step: jax.Array  # Shape (): int32, updates so far.
  inner: optax.OptState  # Of the inner rule, on leaves like `total`'s.
  slow: optax.Params  # X_slow, like the parameters.
  total: optax.Updates  # ΣΔ since the last sync, [..., N, N], or packed.


def orthogonal(
  inner: optax.GradientTransformation,
  *,
  lookahead_period: int | None = None,
  lookahead_alpha: float = 0.5,
  retraction_period: int | None = 100,
  retraction: str = 'newton_schulz',
  thresholds: Sequence[float] = exponential.THRESHOLDS,
  large_steps: str = 'exponential',
  algebra: str = 'whole',
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
  retraction_precision: lax.PrecisionLike = lax.Precision.HIGHEST,
  stack_sharding: jax.sharding.NamedSharding | None = None,
  start_tolerance: float | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Lifts `inner` to matrices with orthonormal rows or columns.

  Must be the last transformation that touches these parameters: what follows
  it would leave the manifold. Leaves are [..., m, n]; the rotation acts on
  the larger side, with an [..., N, N] skew step, N = max(m, n). At most 4
  products of size N³ per matrix and step while ‖Δ‖_F < 1.

  A gradient [..., k, n] of a leaf [..., m, n], k < m <= n, is one whose other
  rows are zero: it is neither stored nor multiplied.

  Args:
    inner: an optax transformation whose rule is elementwise and odd
      (sgd, adam, nadam, lion, …), so that a skew-symmetric input gives a
      skew-symmetric output; its output is projected back to skew. Its
      parameters are the origin of the algebra, so weight decay has no effect.
    lookahead_period: k, or None for no lookahead (the paper's recipe: 6).
    lookahead_alpha: α in (0, 1].
    retraction_period: updates between polar retractions of fast and slow
      copies; None: never. One Newton–Schulz retraction costs 2 products.
    retraction: 'newton_schulz' or 'svd', see `polar_retract`.
    thresholds: of FastExp's orders, see `fast_expm1`.
    large_steps: what a step beyond the last threshold does: 'exponential'
      (the paper's) turns the plane of eigenvalues ±it by t, 'projection' by
      atan(t), never a quarter turn. The latter forgives learning rates that
      are far too large, and converges in fewer steps at large ones.
    algebra: how the inner rule sees Ω, and how its state and ΣΔ are kept:
      'whole', [..., N, N], or 'packed', each entry once, [..., ⌈N/2⌉, N]: the
      same steps of an elementwise rule, with half of that memory and traffic.
    precision: of the step's products. They act on the small step, so less
      than float32 costs little; the default is the safe one.
    retraction_precision: of the retraction's products; keep it at float32.
    stack_sharding: how stacked leaves [L, …, m, n] are laid out during the
      update, and their state afterwards; only the first axis may be sharded.
      Each device then walks its own matrices, without communication. Where L
      does not divide, the stack is padded and the state stays whole.
    start_tolerance: init raises if ‖XᵀX − I‖₂ of any matrix exceeds it (1e-4
      lets float32 rounding pass); None: no check.

  Returns:
    A transformation whose state is an `OrthogonalState`. `update` needs
    `params`; state and update dtypes are those of the parameters.

  Raises:
    ValueError: options out of range; at init or update: no `params`, a leaf
      without two axes, or a leaf narrower than float32; at init: a start off
      the manifold, if asked to look.

  >>> tx = orthogonal(optax.adam(1e-2))
  >>> x = jnp.eye(4)
  >>> state = tx.init(x)
  >>> grad = jnp.arange(16.0).reshape(4, 4)
  >>> updates, state = tx.update(grad, state, x)
  >>> x = optax.apply_updates(x, updates)
  >>> bool(retraction_lib.orthogonality_error(x) < 1e-5)
  True
  """
  for name, period in (
    ('lookahead_period', lookahead_period),
    ('retraction_period', retraction_period),
  ):
    # Hyperparameters injected by optax are arrays, and may be traced.
    if isinstance(period, int) and period < 1:
      raise ValueError(f'{name}={period} must be at least 1, or None.')
  if isinstance(lookahead_alpha, float | int) and not 0 < lookahead_alpha <= 1:
    raise ValueError(f'{lookahead_alpha=} must lie in (0, 1].')
  if retraction not in retraction_lib.METHODS:
    methods = sorted(retraction_lib.METHODS)
    raise ValueError(f'{retraction=} must be one of {methods}.')
  if large_steps not in exponential.LARGE_STEPS:
    names = sorted(exponential.LARGE_STEPS)
    raise ValueError(f'{large_steps=} must be one of {names}.')
  if algebra not in algebra_lib.ALGEBRAS:
    names = sorted(algebra_lib.ALGEBRAS)
    raise ValueError(f'{algebra=} must be one of {names}.')
  kept = algebra_lib.ALGEBRAS[algebra]
  stack.check(stack_sharding)
  inner = optax.with_extra_args_support(inner)
  walk = functools.partial(stack.walk, stack_sharding)
  lay_out = functools.partial(stack.lay_out, stack_sharding)
  restore = functools.partial(stack.restore, stack_sharding)

  def init_fn(params: optax.Params) -> OrthogonalState:
    checks.matrices(params, 'init')
    if start_tolerance is not None:
      checks.on_manifold(params, start_tolerance)
    params = jax.tree.map(lay_out, params)
    zeros = jax.tree.map(lambda x: lay_out(_zero(kept, x)), params)
    lookahead = lookahead_period is not None
    return OrthogonalState(
      step=jnp.zeros([], jnp.int32),
      inner=jax.tree.map(lay_out, inner.init(zeros)),
      slow=jax.tree.map(jnp.copy, params) if lookahead else None,
      total=zeros if lookahead else None,
    )

  def update_fn(
    updates: optax.Updates,
    state: OrthogonalState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, OrthogonalState]:
    if params is None:
      raise ValueError(
        'orthogonal() needs the parameters: call update(grads, state, params).'
      )
    checks.matrices(params, 'update')
    checks.gradients(updates, params)
    count = optax.safe_increment(state.step)

    updates = jax.tree.map(
      lambda g, x: lay_out(g.astype(x.dtype)), updates, params
    )
    omega = jax.tree.map(
      functools.partial(
        walk,
        lambda _, x, g: kept.store(steps.tangent(x, g, precision)),
        onto=(1,),
      ),
      params,
      updates,
    )
    # In the trivialised algebra the point is always at the origin. Rules that
    # ask for parameters get that: weight decay (lion has it by default) is 0.
    origin = jax.tree.map(jnp.zeros_like, omega)
    delta, inner_state = inner.update(omega, state.inner, origin, **extra_args)

    delta = jax.tree.map(lambda d, x: d.astype(x.dtype), delta, params)
    total = state.total
    if lookahead_period is not None:
      total = jax.tree.map(operator.add, total, delta)

    expm1 = functools.partial(
      exponential.fast_expm1,
      thresholds=thresholds,
      large_steps=large_steps,
      precision=precision,
    )
    turn = functools.partial(
      steps.turn, load=kept.load, expm1=expm1, precision=precision
    )
    special = functools.partial(
      steps.special,
      turn=turn,
      retract=functools.partial(
        retraction_lib.polar_retract,
        method=retraction,
        precision=retraction_precision,
      ),
    )
    flags = steps.Flags(
      retract=_due(count, retraction_period),
      sync=_due(count, lookahead_period),
      alpha=lookahead_alpha,
    )
    due = [f for f in (flags.retract, flags.sync) if f is not None]

    def move(x, d, g, slow=None, total=None):
      """Most steps are plain ones, which need not even look at X_slow."""
      # The update is written over Δ or, where Δ is no place for it, over the
      # gradient, which nobody reads again.
      room = () if d.shape == x.shape else (g,)
      if room and g.shape != x.shape:
        room = (jnp.zeros_like(x),)
      copies = () if slow is None else (slow, total)
      place = 1 + len(room)
      plain = functools.partial(
        walk, lambda _, x, d, *unread: turn(x, d), x, d, *room, onto=(place,)
      )
      if not due:
        return steps.Moved(plain())
      now = functools.reduce(jnp.logical_or, due)
      update = plain(when=jnp.logical_not(now))
      with jax.named_scope(SPECIAL):
        return walk(
          lambda flags, x, d, *rest: special(flags, x, d, *rest[len(room) :]),
          *(x, d, *room)[:place],
          update,
          *copies,
          shared=flags,
          onto=range(place, place + 1 + len(copies)),
          when=now,
        )

    if lookahead_period is None:
      moved = jax.tree.map(move, params, delta, updates)
    else:
      moved = jax.tree.map(move, params, delta, updates, state.slow, total)

    def is_moved(x):
      return isinstance(x, steps.Moved)

    update, slow, total = (
      jax.tree.map(operator.itemgetter(i), moved, is_leaf=is_moved)
      for i in range(3)
    )
    update = jax.tree.map(restore, update, params)
    if lookahead_period is None:
      slow = total = None
    return update, OrthogonalState(count, inner_state, slow, total)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _due(count, period):
  """Whether this update is a multiple of `period`; None for never."""
  return None if period is None else count % period == 0


def _zero(kept: algebra_lib.Algebra, x: jax.Array) -> jax.Array:
  """The algebra's 0 for x [..., m, n], with the layout of its stack axes."""
  corner = jnp.sum(jnp.zeros_like(x), axis=(-2, -1), keepdims=True)
  n = max(x.shape[-2:])
  return jnp.broadcast_to(corner, (*x.shape[:-2], kept.rows(n), n)) + 0
