"""NAdam and lookahead for Euclidean parameters, as in LiResNet++ (paper §4)."""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import checks


class ScheduledNadamState(NamedTuple):
  """State of NAdam in `scheduled_nadam`."""

  step: jax.Array  # Shape (): int32.
  mu_product: jax.Array  # Shape (): float32, Π μ_i over all steps.
  mu: optax.Updates  # First moment.
  nu: optax.Updates  # Second moment.


def scheduled_nadam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum_decay: float = 0.004,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """Returns NAdam as in torch, with its momentum schedule.

      μ_t = b1 (1 − 0.96^(momentum_decay·t)/2),  m ← b1 m + (1 − b1) g,
      v ← b2 v + (1 − b2) g²,
      u = [ (1 − μ_t)/(1 − Πμ_{i<=t}) g + μ_{t+1}/(1 − Πμ_{i<=t+1}) m ]
          / (sqrt(v/(1 − b2^t)) + eps)

  μ rises slowly from b1/2 to b1, where `optax.nadam` has it from the start. The
  rule is elementwise and odd, so `orthogonal` can lift it. Updates have the
  dtypes of `params`, or of the gradients where `update` gets no `params`.
  Reference: T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016
  workshop.

  Args:
    learning_rate: number, or schedule of the step.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: constant added to the root of the second moment.
    momentum_decay: rate at which μ approaches b1.
    mu_dtype: dtype of the first moment; None: that of the leaf, but at least
      float32.

  >>> tx = scheduled_nadam(1e-3)
  >>> u, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
  >>> round(u.item(), 6)  # Sign-like: Adam's first step times 1.056.
  -0.001056
  """

  def momentum(t):
    return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

  def init_fn(params):
    def zeros(p):
      return jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32))

    mu = optax.tree.cast(jax.tree.map(zeros, params), mu_dtype)
    nu = jax.tree.map(zeros, params)
    step, mu_product = jnp.zeros([], jnp.int32), jnp.ones([], jnp.float32)
    return ScheduledNadamState(step, mu_product, mu, nu)

  def update_fn(updates, state, params=None):
    count = optax.safe_increment(state.step)
    t = count.astype(jnp.float32)
    mu_t, mu_next = momentum(t), momentum(t + 1)
    product = (state.mu_product * mu_t).astype(jnp.float32)
    g_weight = (1 - mu_t) / (1 - product)
    m_weight = mu_next / (1 - product * mu_next)
    # 1 − b2^t; the subtraction would lose digits, 1e-5 at t = 1. The logarithm
    # of a Python number is taken in float64.
    log_b2 = math.log(b2) if isinstance(b2, float) and b2 > 0 else jnp.log(b2)
    unbias = -jnp.expm1(t * log_b2)

    like = updates if params is None else params
    g = optax.tree.cast_like(updates, state.nu)
    nu = optax.tree.update_moment_per_elem_norm(g, state.nu, b2, 2)
    mu = optax.tree.update_moment(g, optax.tree.cast_like(state.mu, g), b1, 1)

    def rescale(g, m, v):
      return (g_weight * g + m_weight * m) / (jnp.sqrt(v / unbias) + eps)

    updates = optax.tree.cast_like(jax.tree.map(rescale, g, mu, nu), like)
    mu, nu = optax.tree.cast_like((mu, nu), (state.mu, state.nu))
    return updates, ScheduledNadamState(count, product, mu, nu)

  return optax.chain(
    optax.GradientTransformation(init_fn, update_fn),
    optax.scale_by_learning_rate(learning_rate),
  )


class LookaheadState(NamedTuple):
  """State of `lookahead`."""

  step: jax.Array  # Shape (): int32.
  inner: optax.OptState  # State of the fast optimizer.
  slow: optax.Params  # Slow weights; the fast ones until the first sync.


def lookahead(
  inner: optax.GradientTransformation, period: int = 6, weight: float = 0.5
) -> optax.GradientTransformationExtraArgs:
  """Syncs the fast weights with a slow copy every `period` steps.

      slow ← slow + η·(fast − slow),   fast ← slow,   η = weight

  The first sync creates the slow copy from the fast weights, as the recipe's
  torch code does; `optax.lookahead` creates it at step 0. `update` needs
  `params`. Reference: M. Zhang et al., "Lookahead Optimizer", NeurIPS 2019.

  Args:
    inner: optimizer of the fast weights.
    period: number of steps between syncs, at least 1.
    weight: share of the fast weights in a sync, in (0, 1].

  >>> tx = lookahead(optax.sgd(1.0), period=1)
  >>> x = jnp.zeros(2)
  >>> updates, state = tx.update(jnp.ones(2), tx.init(x), x)
  >>> state.slow.tolist()
  [-1.0, -1.0]
  """
  checks.period('period', period)
  checks.weight('weight', weight)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    slow = jax.tree.map(jnp.copy, params)
    return LookaheadState(jnp.zeros([], jnp.int32), inner.init(params), slow)

  def update_fn(updates, state, params=None, **extra_args):
    checks.gradients(updates, params)
    count = optax.safe_increment(state.step)
    updates, inner_state = inner.update(
      updates, state.inner, params, **extra_args
    )
    syncs = (count % period == 0) & (count > period)

    def new_slow(fast, slow):
      slow = jnp.where(syncs, slow + weight * (fast - slow), slow)
      return jnp.where(count <= period, fast, slow).astype(fast.dtype)

    def new_update(p, u, slow):
      return jnp.where(syncs, slow - p, u).astype(p.dtype)

    fast = optax.apply_updates(params, updates)
    slow = jax.tree.map(new_slow, fast, state.slow)
    updates = jax.tree.map(new_update, params, updates, slow)
    return updates, LookaheadState(count, inner_state, slow)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
