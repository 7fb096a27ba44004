"""Lifts elementwise optax rules that are odd functions to the orthogonal group.

A step of X ∈ O(n) is made in the Lie algebra of skew-symmetric matrices:

    Ω = skew(XᵀG) = (XᵀG − GᵀX)/2    from the Euclidean gradient G
    Δ = inner.update(Ω)              any optax rule, learning rate included
    X ← X·FastExp(Δ)

Every k steps, manifold lookahead of weight η moves a slow copy along the sum of
the steps since then (paper §3.2(b)), and the fast copy follows:

    X_slow ← X_slow·FastExp(η ΣΔ),   X ← X_slow,   ΣΔ ← 0.

A periodic polar retraction takes both copies back to the group, from which
truncation and rounding slowly remove them. `optax.apply_updates` lands on the
group: the update is the new X less the old one. A wide X [m, n] is moved
likewise, by Δ [n, n], and a tall one transposed. Of a skew matrix, half of the
entries are stored (`pack`). `ambient` moves matrices far from square, `stack`
loops over stacks of them.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import ambient
from lipnext_jax.optim import checks
from lipnext_jax.optim import exponential
from lipnext_jax.optim import retraction as retraction_lib
from lipnext_jax.optim import stack

# Named scope of the work that most steps skip: the lookahead's sync, the
# retraction, and the test of a matrix that was changed between updates.
PERIODIC = 'periodic_step'

# Ratio of the sides from which on `moments='auto'` means 'ambient'.
AMBIENT_RATIO = 8
MOMENTS = ('auto', 'algebra', 'ambient')


class OrthogonalState(NamedTuple):
  """State of `orthogonal`."""

  step: jax.Array  # Number of updates so far, int32 of shape ().
  inner: optax.OptState  # State of the inner rule, on trees like Ω.
  slow: optax.Params  # X_slow; None without lookahead.
  total: optax.Updates  # ΣΔ since the last sync; None without lookahead.
  expected: optax.Params  # `checks.fingerprint` of what the last update left.


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
  if traced. Leaves are stacks [..., m, n]. Determinants keep their signs. The
  transformation has an `OrthogonalState`, and its `update` needs `params`.
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
      vectors of the leaf's size), or 'auto' (ambient where N is at least
      `AMBIENT_RATIO` times the shorter side).
    precision: precision of the step's products. Retraction is always precise.
    stack_sharding: sharding of stacks [L, …, m, n] and of their state along L.
      Each device updates its own matrices; other stacks are padded.
    start_tolerance: largest ‖XᵀX − I‖₂ that `init` accepts, unless it is
      traced; None: any.

  Raises:
    ValueError: options out of range, or leaves that are not real matrices on
      the manifold.
    TypeError: `inner` is not an optax rule with one learning rate.

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
  lifted = _Lifted(
    checks.rule(inner, learning_rate),
    lookahead_period,
    lookahead_alpha,
    retraction_period,
    retraction,
    moments,
    dict(thresholds=thresholds, large_steps=large_steps, precision=precision),
    stack_sharding,
    start_tolerance,
  )
  return optax.GradientTransformationExtraArgs(lifted.init, lifted.update)


@dataclasses.dataclass(frozen=True, eq=False)
class _Lifted:
  """A lifted rule: its options, and its functions of one matrix X [m, n]."""

  inner: optax.GradientTransformationExtraArgs
  lookahead_period: int | None
  lookahead_alpha: float
  retraction_period: int | None
  retraction: str
  moments: str
  curve: dict[str, Any]  # Options of `fast_expm1`.
  sharding: jax.sharding.NamedSharding | None
  start_tolerance: float | None

  def init(self, params: optax.Params) -> OrthogonalState:
    """Returns the state before the first step."""
    checks.start(params, self.start_tolerance)
    lay_out = functools.partial(stack.lay_out, sharding=self.sharding)
    slow = lay_out(jax.tree.map(jnp.copy, params))
    total = lay_out(jax.tree.map(self.origin, params))
    inner_state = lay_out(self.inner.init(total))
    if self.lookahead_period is None:
      slow = total = None
    expected = jax.tree.map(checks.fingerprint, params)
    step = jnp.zeros([], jnp.int32)
    return OrthogonalState(step, inner_state, slow, total, expected)

  def update(
    self,
    grads: optax.Updates,
    state: OrthogonalState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, OrthogonalState]:
    """Returns the update and the next state: step, sync, retraction."""
    checks.gradients(grads, params)
    checks.unspoilt(params, state.expected)
    map_stacks = functools.partial(stack.map_stacks, sharding=self.sharding)
    count = optax.safe_increment(state.step)
    grads = stack.lay_out(optax.tree.cast_like(grads, params), self.sharding)

    omega = map_stacks(self.tangent, params, grads, state.expected)
    zeros = jax.tree.map(jnp.zeros_like, omega)
    delta, inner_state = self.inner.update(
      omega, state.inner, zeros, **extra_args
    )
    delta = optax.tree.cast_like(delta, params)

    # A step rotates X or, if due, syncs. The update overwrites the gradient,
    # the first of the trees (`replace=1`), which is not read again.
    slow, total, period = state.slow, state.total, self.lookahead_period
    rotate = functools.partial(map_stacks, self.rotate, grads, params, delta)
    if period is None:
      update = rotate(replace=1)
    else:
      due = count % period == 0
      update = rotate(replace=1, when=~due)
      alpha = optax.tree.full_like(state.expected, self.lookahead_alpha)
      trees = update, slow, optax.tree.add(total, delta), params, alpha
      update, slow, total = map_stacks(self.sync, *trees, replace=3, when=due)
    if self.retraction_period is not None:
      due = count % self.retraction_period == 0
      update = map_stacks(self.retract, update, params, replace=1, when=due)
      slow = map_stacks(self.retract, slow, replace=1, when=due)
    update = stack.restore(update, params)
    new_params = optax.tree.add(params, update)
    expected = jax.tree.map(checks.fingerprint, new_params)
    return update, OrthogonalState(count, inner_state, slow, total, expected)

  def tangent(self, x, g, expected) -> jax.Array:
    """Returns Ω = skew(XᵀG), or nan if X was scaled since the last update."""
    with jax.named_scope(PERIODIC):
      is_spoilt = checks.is_spoilt(x, expected)
    x, g = self.oriented(x), self.oriented(g)
    precision = self.curve['precision']
    if self.is_ambient(x):
      omega = ambient.tangent(x, g, precision)
    else:
      omega = pack(jnp.matmul(x.T, g, precision=precision))
    return jnp.where(is_spoilt, jnp.nan, omega)

  def rotate(self, _, x, delta) -> jax.Array:
    """Returns the update X·(FastExp(Δ) − I), in the place of the gradient."""
    y = self.oriented(x)
    if self.is_ambient(x):
      update = ambient.rotate(y, delta, **self.curve)
    else:
      # Unpacking reads every entry twice. Fused with the inner rule, it would
      # keep that from overwriting its moments; so Δ stays packed until here.
      expm1 = exponential.fast_expm1(unpack(delta), **self.curve)
      update = jnp.matmul(y, expm1, precision=self.curve['precision'])
    return update if update.shape == x.shape else update.T

  @jax.named_scope(PERIODIC)
  def sync(self, _, slow, total, x, alpha):
    """Returns X's update to the new X_slow, the new X_slow, and ΣΔ = 0."""
    moved = self.rotate(None, slow, alpha * total)
    # `total - total`, not zeros: only a result that is computed from `total`
    # lets the compiler write over it in place.
    return (slow - x) + moved, slow + moved, total - total

  @jax.named_scope(PERIODIC)
  def retract(self, update, x=0.0) -> jax.Array:
    """Returns polar(X + update) − X, or polar(`update`) without X."""
    return retraction_lib.polar_retract(x + update, self.retraction) - x

  def is_ambient(self, x) -> bool:
    """Returns whether Ω of X [..., m, n] has the size of X."""
    short, long = sorted(x.shape[-2:])
    is_far = self.moments == 'auto' and long >= AMBIENT_RATIO * short
    return is_far or self.moments == 'ambient'

  def oriented(self, x) -> jax.Array:
    """Makes X [..., m, n] tall (ambient) or wide (algebra) by transposition."""
    m, n = x.shape[-2:]
    return x.mT if (m < n if self.is_ambient(x) else m > n) else x

  def origin(self, x) -> jax.Array:
    """Returns Δ = 0 for X [..., m, n], sharded like X along leading axes."""
    if self.is_ambient(x):
      return jnp.zeros_like(self.oriented(x))
    corner = jnp.sum(jnp.zeros_like(x), axis=(-2, -1), keepdims=True)
    n = max(x.shape[-2:])
    return jnp.broadcast_to(corner, (*x.shape[:-2], (n + 1) // 2, n)) + 0


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
