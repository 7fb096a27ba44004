"""Any elementwise, odd optax rule, lifted to the orthogonal group (paper §3.2).

For X ∈ O(n) with Euclidean gradient G, in the (left-trivialised) Lie algebra:

    Ω = skew(XᵀG) = (XᵀG − GᵀX)/2
    Δ = inner.update(Ω)              any optax rule; sign and rate included
    X ← X·FastExp(Δ)

and, with manifold lookahead of weight η, every k steps (paper §3.2(b))

    X_slow ← X_slow·FastExp(η ΣΔ),   X ← X_slow,   ΣΔ ← 0.

The emitted update is the difference to X, so that `optax.apply_updates` lands
on the manifold. Skew matrices are kept packed, see `algebra`; the same steps of
matrices far from square are in `ambient`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import algebra
from lipnext_jax.optim import ambient
from lipnext_jax.optim import checks
from lipnext_jax.optim import exponential
from lipnext_jax.optim import products
from lipnext_jax.optim import retraction as retraction_lib
from lipnext_jax.optim import stack

# Named scope of what most steps skip: lookahead's sync, the retraction, and a
# closer look at a matrix that was changed.
PERIODIC = 'periodic_step'

# Sides from this ratio on: moments in the ambient space (`moments='auto'`).
AMBIENT_RATIO = 8
MOMENTS = ('auto', 'algebra', 'ambient')


class OrthogonalState(NamedTuple):
  """State of `orthogonal`.

  Attributes:
    step: updates so far, int32 of shape ().
    inner: state of the inner rule; its leaves are steps.
    slow: X_slow, like the parameters; None without lookahead.
    total: ΣΔ since the last sync, a step; None without lookahead.
    expected: fingerprints of X + update, [..., 1, 1].
  """

  step: jax.Array
  inner: optax.OptState
  slow: optax.Params
  total: optax.Updates
  expected: optax.Params


class _Options(NamedTuple):
  """The checked options of `orthogonal`, and its functions of one matrix."""

  inner: optax.GradientTransformationExtraArgs
  lookahead_period: int | None
  lookahead_alpha: float
  retraction_period: int | None
  stack_sharding: jax.sharding.NamedSharding | None
  start_tolerance: float | None
  origin: Callable[[jax.Array], jax.Array]
  tangent: Callable[[jax.Array, jax.Array], jax.Array]
  rotate: Callable[[jax.Array, jax.Array], jax.Array]
  retract: Callable[[jax.Array], jax.Array]


def orthogonal(
  inner: optax.GradientTransformation | Callable[..., Any],
  learning_rate: optax.ScalarOrSchedule | None = None,
  *,
  lookahead_period: int | None = None,
  lookahead_alpha: float = 0.5,
  retraction_period: int | None = 100,
  retraction: str = 'newton_schulz',
  thresholds: Sequence[float] = exponential.THRESHOLDS,
  large_steps: str = 'exponential',
  moments: str = 'auto',
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
  stack_sharding: jax.sharding.NamedSharding | None = None,
  start_tolerance: float | None = 1e-3,
) -> optax.GradientTransformationExtraArgs:
  """Lifts an optax rule to matrices with orthonormal rows or columns.

  The learning rate belongs inside: `orthogonal(optax.adam, 1e-3)`. Scaled or
  shifted updates leave the manifold; the next one raises, or is nan if traced.

  Leaves are [..., m, n]. Where the longer side, N, is less than 8 times the
  shorter, steps are packed skew matrices [..., ⌈N/2⌉, N], at most 4 products of
  size N³ each while ‖Δ‖_F < 1. Other leaves have steps of their own shape, and
  nothing takes memory or time of size N², see `ambient`. No step changes the
  sign of a square matrix's determinant.

  Args:
    inner: learning rate → optax rule, or a rule that has its learning rate. It
      must be elementwise and odd (sgd, adam, nadam, lion, …). It is given Ω,
      and as parameters zeros, so weight decay has no effect.
    learning_rate: a number or a schedule, for `inner`; None: it has one.
    lookahead_period: updates between syncs (the paper: 6); None: no lookahead.
    lookahead_alpha: the lookahead's weight, in (0, 1].
    retraction_period: updates between polar retractions of the fast and the
      slow copy, always in full precision; None: never.
    retraction: 'newton_schulz' or 'svd', see `polar_retract`.
    thresholds: norms of Δ at which FastExp's order rises.
    large_steps: 'exponential' (the paper's) or 'projection', which forgives
      learning rates that are far too large; for both see `fast_expm1`.
    moments: 'algebra' (skew matrices) or 'ambient' (the leaf's shape) for every
      leaf; 'auto': by its shape.
    precision: precision of the step's products; they act on the small step, so
      less than float32 costs little.
    stack_sharding: layout of stacks [L, …, m, n] and of their state; only L
      may be sharded. Each device updates its own matrices, without
      communication. Stacks that do not divide are padded for the update.
    start_tolerance: largest ‖XᵀX − I‖₂ of a matrix that init accepts, where it
      is not traced; None: any.

  Returns:
    A transformation with an `OrthogonalState`, whose `update` needs `params`.

  Raises:
    ValueError: options out of range; leaves that cannot be orthogonal or are
      not; gradients that do not fit them.
    TypeError: `inner` is no rule, or has no learning rate or two;
      `stack_sharding` is not a `NamedSharding`.

  >>> tx = orthogonal(optax.sgd, 1e-2)
  >>> x, grad = jnp.eye(4), jnp.arange(16.0).reshape(4, 4)
  >>> updates, state = tx.update(grad, tx.init(x), x)
  >>> x = optax.apply_updates(x, updates)
  >>> bool(retraction_lib.orthogonality_error(x) < 1e-5)
  True
  """
  checks.period('lookahead_period', lookahead_period)
  checks.weight('lookahead_alpha', lookahead_alpha)
  checks.period('retraction_period', retraction_period)
  checks.choice('retraction', retraction, retraction_lib.METHODS)
  checks.choice('large_steps', large_steps, exponential.LARGE_STEPS)
  checks.choice('moments', moments, MOMENTS)
  stack.check(stack_sharding)
  curve = functools.partial(
    rotate, thresholds=thresholds, large_steps=large_steps
  )
  options = _Options(
    checks.rule(inner, learning_rate),
    lookahead_period,
    lookahead_alpha,
    retraction_period,
    stack_sharding,
    start_tolerance,
    origin=functools.partial(_origin, moments=moments),
    tangent=functools.partial(tangent, moments=moments, precision=precision),
    rotate=functools.partial(curve, moments=moments, precision=precision),
    retract=functools.partial(retraction_lib.polar_retract, method=retraction),
  )
  return optax.GradientTransformationExtraArgs(
    functools.partial(_init, options), functools.partial(_update, options)
  )


def _init(options: _Options, params: optax.Params) -> OrthogonalState:
  """Returns the state before the first step."""
  checks.matrices(params)
  checks.on_manifold(params, options.start_tolerance)
  lay_out = functools.partial(stack.lay_out, sharding=options.stack_sharding)
  slow = lay_out(jax.tree.map(jnp.copy, params))
  total = lay_out(jax.tree.map(options.origin, params))
  inner_state = lay_out(options.inner.init(total))
  if options.lookahead_period is None:
    slow = total = None
  expected = jax.tree.map(checks.fingerprint, params)
  step = jnp.zeros([], jnp.int32)
  return OrthogonalState(step, inner_state, slow, total, expected)


def _update(
  options: _Options,
  grads: optax.Updates,
  state: OrthogonalState,
  params: optax.Params | None = None,
  **extra_args: Any,
) -> tuple[optax.Updates, OrthogonalState]:
  """Returns X·(FastExp(Δ) − I), or what a sync or a retraction makes of it."""
  checks.gradients(grads, params)
  checks.matrices(params)
  checks.left_alone(params, state.expected)
  sharding = options.stack_sharding
  map_stacks = functools.partial(stack.map_stacks, sharding=sharding)
  step = optax.safe_increment(state.step)
  grads = optax.tree.cast_like(grads, params)
  grads = stack.lay_out(grads, sharding)

  # Ω = skew(XᵀG), then Δ by the inner rule.
  is_spoilt = jax.named_scope(PERIODIC)(checks.is_spoilt)
  omega = map_stacks(
    lambda x, g, expected: jnp.where(
      is_spoilt(x, expected), jnp.nan, options.tangent(x, g)
    ),
    *(params, grads, state.expected),
  )
  origin = jax.tree.map(jnp.zeros_like, omega)
  delta, inner_state = options.inner.update(
    omega, state.inner, origin, **extra_args
  )
  delta = optax.tree.cast_like(delta, params)

  # X·(FastExp(Δ) − I), written over the gradient, which nobody reads again. A
  # step that syncs has no use for it.
  period = options.lookahead_period
  syncs = None if period is None else step % period == 0
  rotates = None if syncs is None else ~syncs
  update = map_stacks(
    lambda _, x, d: options.rotate(x, d),
    *(grads, params, delta),
    replace=1,
    when=rotates,
  )
  slow, total = state.slow, state.total
  if syncs is not None:
    total = optax.tree.add(total, delta)
    update, slow, total = sync_lookahead(
      *(update, slow, total, params, options.lookahead_alpha, syncs),
      options.rotate,
      map_stacks,
    )
  if options.retraction_period is not None:
    due = step % options.retraction_period == 0
    update, slow = retract_stacks(
      update, slow, params, due, options.retract, map_stacks
    )
  update = stack.restore(update, params, sharding)
  expected = jax.tree.map(
    lambda x, u: checks.fingerprint(x + u), params, update
  )
  return update, OrthogonalState(step, inner_state, slow, total, expected)


def tangent(
  x: jax.Array,
  g: jax.Array,
  *,
  precision: lax.PrecisionLike,
  moments: str = 'algebra',
) -> jax.Array:
  """Returns Ω = skew(XᵀG), packed: the gradient G [m, n] in the Lie algebra.

  If m > n, Ω is that of the transposed matrices. Far from square it is Ω's
  action on X instead, [m, n], see `ambient.tangent`.

  >>> tangent(jnp.eye(2), jnp.array([[0.0, 2.0], [0.0, 0.0]]), precision=None)
  Array([[0., 1.]], dtype=float32)
  """
  if _is_ambient(x, moments):
    return ambient.tangent(x, g, precision=precision)
  if x.shape[0] > x.shape[1]:
    return tangent(x.T, g.T, precision=precision)
  return algebra.pack(products.product(products.transposed(x), g, precision))


def rotate(
  x: jax.Array,
  delta: jax.Array,
  *,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
  moments: str = 'algebra',
  **options: Any,
) -> jax.Array:
  """Returns a plain step's update of X [m, n], X·(FastExp(Δ) − I).

  If m > n, it is that of Xᵀ, transposed. Δ is packed; see `fast_expm1` for the
  options. Far from square Δ is [m, n], see `ambient.rotate`.

  >>> rotate(jnp.eye(2), jnp.array([[0.0, 0.1]])).round(4)  # By 0.1 in radians.
  Array([[-0.005 ,  0.0998],
         [-0.0998, -0.005 ]], dtype=float32)
  """
  if _is_ambient(x, moments):
    return ambient.rotate(x, delta, precision=precision, **options)
  if x.shape[0] > x.shape[1]:
    return rotate(x.T, delta, precision=precision, **options).T
  # Unpacked here, not in the inner rule's pass over the stacks, which could not
  # write over its moments while another entry still needs them.
  delta = algebra.unpack(delta)
  expm1 = exponential.fast_expm1(delta, precision=precision, **options)
  return products.product(x, expm1, precision)


@jax.named_scope(PERIODIC)
def sync_lookahead(
  update: optax.Updates,
  slow: optax.Params,
  total: optax.Updates,
  params: optax.Params,
  weight: jax.typing.ArrayLike,
  due: jax.typing.ArrayLike,
  move: Callable[[jax.Array, jax.Array], jax.Array],
  map_stacks: Callable[..., Any],
) -> tuple[optax.Updates, optax.Params, optax.Updates]:
  """Syncs the slow and the fast copy if that is due; else changes nothing.

      X_slow ← X_slow·FastExp(η ΣΔ),   X ← X_slow,   ΣΔ ← 0

  X + update is the fast copy, `total` is ΣΔ with this step's Δ, and `move` maps
  a matrix X and a packed Δ to X·(FastExp(Δ) − I).
  """

  def sync(update, slow, total, x, weight):
    del update  # Unused, and not computed in a step that syncs.
    moved = move(slow, jnp.asarray(weight, x.dtype) * total)
    # Zeros that depend on what was read: or the loop would copy the stack, for
    # it could not tell that it reads a matrix before it writes over it.
    return (slow - x) + moved, slow + moved, total - total

  return map_stacks(
    sync, update, slow, total, params, replace=3, when=due, weight=weight
  )


@jax.named_scope(PERIODIC)
def retract_stacks(
  update: optax.Updates,
  slow: optax.Params | None,
  params: optax.Params,
  due: jax.typing.ArrayLike,
  polar: Callable[[jax.Array], jax.Array],
  map_stacks: Callable[..., Any],
) -> tuple[optax.Updates, optax.Params | None]:
  """Takes X + update and X_slow, if any, to their polar factors if due."""
  update = map_stacks(
    lambda update, x: polar(x + update) - x, update, params, replace=1, when=due
  )
  return update, map_stacks(polar, slow, replace=1, when=due)


def _is_ambient(x: jax.Array, moments: str) -> bool:
  """Returns whether the steps of x [..., m, n] have its own shape."""
  if moments == 'auto':
    short, long = sorted(x.shape[-2:])
    return long >= AMBIENT_RATIO * short
  return moments == 'ambient'


def _origin(x: jax.Array, moments: str) -> jax.Array:
  """Returns Δ = 0 for x [..., m, n], laid out like x's stack axes."""
  if _is_ambient(x, moments):
    return jnp.zeros_like(x)
  corner = jnp.sum(jnp.zeros_like(x), axis=(-2, -1), keepdims=True)
  n = max(x.shape[-2:])
  shape = (*x.shape[:-2], algebra.packed_rows(n), n)
  return jnp.broadcast_to(corner, shape) + 0
