"""Lifts elementwise optax rules that are odd functions to the orthogonal group.

A step of X ∈ O(n) is made in the Lie algebra of skew-symmetric matrices:

    Ω = skew(XᵀG) = (XᵀG − GᵀX)/2    from the Euclidean gradient G
    Δ = inner.update(Ω)              any optax rule, learning rate included
    X ← X·FastExp(Δ)

Every k steps, manifold lookahead of weight η moves a slow copy along the sum of
the steps since then (paper §3.2(b)), and the fast copy follows:

    X_slow ← X_slow·FastExp(η ΣΔ),   X ← X_slow,   ΣΔ ← 0.

A periodic polar retraction takes both copies back to the group, from which
truncation and rounding slowly remove them.

The emitted update is the new X less the old one, so that `optax.apply_updates`
lands on the manifold. `algebra` packs skew matrices, `ambient` moves matrices
that are far from square, and `stack` loops over stacks of matrices.
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

# Named scope of the work that most steps skip: the lookahead's sync, the
# retraction, and the test of a matrix that was changed between updates.
PERIODIC = 'periodic_step'

# Smallest ratio of the longer side to the shorter one for which
# `moments='auto'` means 'ambient'.
AMBIENT_RATIO = 8
MOMENTS = ('auto', 'algebra', 'ambient')


class OrthogonalState(NamedTuple):
  """State of `orthogonal`.

  Attributes:
    step: number of updates so far, int32 of shape ().
    inner: state of the inner rule on trees like Ω.
    slow: X_slow, a tree like the parameters; None without lookahead.
    total: ΣΔ since the last sync, a tree like Ω; None without lookahead.
    expected: `checks.fingerprint` of the parameters after the last update.
  """

  step: jax.Array
  inner: optax.OptState
  slow: optax.Params
  total: optax.Updates
  expected: optax.Params


class _Options(NamedTuple):
  """Checked options of `orthogonal`, and its functions of one matrix."""

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

  Give the learning rate to `orthogonal`: an update that is scaled or shifted
  afterwards leaves the manifold, and the next `update` raises, or returns nan
  if traced. Leaves are stacks [..., m, n]. Determinants keep their signs.
  docs/optimizer.md has costs, limits and comparisons.

  Args:
    inner: elementwise and odd optax rule (sgd, adam, nadam, lion, …), or a
      function from a learning rate to one. It is given Ω, and zeros as
      parameters, so that weight decay has no effect.
    learning_rate: number or schedule that `inner` is called with; None if
      `inner` is a rule, which has its learning rate.
    lookahead_period: updates between syncs (the paper: 6); None: no lookahead.
    lookahead_alpha: weight η of the lookahead, in (0, 1].
    retraction_period: updates between retractions; None: never.
    retraction: 'newton_schulz' or 'svd', see `polar_retract`.
    thresholds: norms of Δ at which FastExp's order rises, see `fast_expm1`.
    large_steps: 'exponential' (the paper's) or 'projection', which forgives
      learning rates that are far too large; see `fast_expm1`.
    moments: what `inner` is given and keeps moments of: 'algebra' (skew N×N
      matrices, N the longer side, of which half is stored), 'ambient' (tangent
      vectors of the leaf's shape, see `ambient`), or 'auto' (ambient from a
      ratio of the sides of `AMBIENT_RATIO` on).
    precision: precision of the step's products. A low one costs little
      accuracy, as the step is small. Retractions always take full precision.
    stack_sharding: sharding of stacks [L, …, m, n] and of their state along L.
      Each device updates its own matrices without communication; stacks that
      do not divide are padded.
    start_tolerance: largest ‖XᵀX − I‖₂ that `init` accepts, unless it is
      traced; None: any.

  Returns:
    A transformation with an `OrthogonalState`, whose `update` needs `params`.

  Raises:
    ValueError: options out of range, leaves that are not real matrices on the
      manifold, or gradients that do not fit them.
    TypeError: `inner` is not an optax rule, or has no learning rate, or two of
      them; `stack_sharding` is not a `NamedSharding`.

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
  options = _Options(
    checks.rule(inner, learning_rate),
    lookahead_period,
    lookahead_alpha,
    retraction_period,
    stack_sharding,
    start_tolerance,
    origin=functools.partial(_origin, moments=moments),
    tangent=functools.partial(tangent, moments=moments, precision=precision),
    rotate=functools.partial(
      rotate,
      moments=moments,
      precision=precision,
      thresholds=thresholds,
      large_steps=large_steps,
    ),
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
  """Returns the update and the next state: step, sync, retraction."""
  checks.gradients(grads, params)
  checks.matrices(params)
  checks.unspoilt(params, state.expected)
  sharding = options.stack_sharding
  map_stacks = functools.partial(stack.map_stacks, sharding=sharding)
  count = optax.safe_increment(state.step)
  grads = stack.lay_out(optax.tree.cast_like(grads, params), sharding)

  # Ω = skew(XᵀG), then Δ by the inner rule.
  def checked_tangent(x, g, expected):
    with jax.named_scope(PERIODIC):
      is_spoilt = checks.is_spoilt(x, expected)
    return jnp.where(is_spoilt, jnp.nan, options.tangent(x, g))

  omega = map_stacks(checked_tangent, params, grads, state.expected)
  zeros = jax.tree.map(jnp.zeros_like, omega)
  delta, inner_state = options.inner.update(
    omega, state.inner, zeros, **extra_args
  )
  delta = optax.tree.cast_like(delta, params)

  # The update X·(FastExp(Δ) − I), unless this step syncs. It overwrites the
  # gradient, the first of the trees (`replace=1`), which is not read again.
  def step(_, x, delta):
    return options.rotate(x, delta)

  period, slow, total = options.lookahead_period, state.slow, state.total
  if period is None:
    update = map_stacks(step, grads, params, delta, replace=1)
  else:
    due = count % period == 0
    update = map_stacks(step, grads, params, delta, replace=1, when=~due)
    total = optax.tree.add(total, delta)
    update, slow, total = _sync_lookahead(
      options, map_stacks, due, update, slow, total, params
    )
  if options.retraction_period is not None:
    due = count % options.retraction_period == 0
    update, slow = _retract_stacks(
      options, map_stacks, due, update, slow, params
    )
  update = stack.restore(update, params, sharding)
  new_params = optax.tree.add(params, update)
  expected = jax.tree.map(checks.fingerprint, new_params)
  return update, OrthogonalState(count, inner_state, slow, total, expected)


def tangent(
  x: jax.Array,
  g: jax.Array,
  *,
  precision: lax.PrecisionLike,
  moments: str = 'algebra',
) -> jax.Array:
  """Returns Ω = skew(XᵀG), packed, for X and G [m, n] with m <= n.

  Taller matrices are transposed. For 'ambient' moments, see `ambient.tangent`.
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
  """Returns X·(FastExp(Δ) − I) for X [m, n], m <= n, and a packed Δ.

  Taller matrices are transposed. For 'ambient' moments, see `ambient.rotate`.
  The other options are those of `fast_expm1`.

  >>> rotate(jnp.eye(2), jnp.array([[0.0, 0.1]])).round(4)  # By 0.1 radians.
  Array([[-0.005 ,  0.0998],
         [-0.0998, -0.005 ]], dtype=float32)
  """
  if _is_ambient(x, moments):
    return ambient.rotate(x, delta, precision=precision, **options)
  if x.shape[0] > x.shape[1]:
    return rotate(x.T, delta, precision=precision, **options).T
  # Unpacking reads every entry twice. Fused with the inner rule, it would keep
  # that from overwriting its moments; so Δ stays packed until here.
  expm1 = exponential.fast_expm1(
    algebra.unpack(delta), precision=precision, **options
  )
  return products.product(x, expm1, precision)


@jax.named_scope(PERIODIC)
def _sync_lookahead(options, map_stacks, due, update, slow, total, params):
  """Returns update, slow and total after a sync, or unchanged if not `due`.

      X_slow ← X_slow·FastExp(η ΣΔ),   X ← X_slow,   ΣΔ ← 0

  The fast copy X is params + update. `total`, ΣΔ, contains this step's Δ.
  """

  def sync(_, slow, total, x, weight):
    moved = options.rotate(slow, jnp.asarray(weight, x.dtype) * total)
    # `total - total`, not zeros: only a result that is computed from `total`
    # lets the compiler write over it in place.
    return (slow - x) + moved, slow + moved, total - total

  trees = update, slow, total, params
  weight = options.lookahead_alpha
  return map_stacks(sync, *trees, replace=3, when=due, weight=weight)


@jax.named_scope(PERIODIC)
def _retract_stacks(options, map_stacks, due, update, slow, params):
  """Takes params + update and slow, if any, to their polar factors if `due`."""

  def retract(update, x):
    return options.retract(x + update) - x

  update = map_stacks(retract, update, params, replace=1, when=due)
  return update, map_stacks(options.retract, slow, replace=1, when=due)


def _is_ambient(x: jax.Array, moments: str) -> bool:
  """Returns whether Ω of x [..., m, n] has the shape of x."""
  if moments == 'auto':
    short, long = sorted(x.shape[-2:])
    return long >= AMBIENT_RATIO * short
  return moments == 'ambient'


def _origin(x: jax.Array, moments: str) -> jax.Array:
  """Returns Δ = 0 for x [..., m, n], sharded like x along the leading axes."""
  if _is_ambient(x, moments):
    return jnp.zeros_like(x)
  corner = jnp.sum(jnp.zeros_like(x), axis=(-2, -1), keepdims=True)
  n = max(x.shape[-2:])
  shape = (*x.shape[:-2], algebra.packed_rows(n), n)
  return jnp.broadcast_to(corner, shape) + 0
