"""The Euclidean half of the recipe: NAdam as torch has it, and lookahead.

Two details of LiResNet++'s recipe, which the paper follows (§4), differ from
optax: NAdam's momentum schedule, and when lookahead's slow copy is created.
"""

import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import checks


class ScheduledNadamState(NamedTuple):
  """State of `scale_by_scheduled_nadam`."""

  step: jax.Array  # Shape (): int32.
  mu_product: jax.Array  # Shape (): float32, Π μ_i.
  mu: optax.Updates  # First moment.
  nu: optax.Updates  # Second moment.


def _log(b):
  """log b; in float64 for Python numbers, traced for injected ones."""
  if isinstance(b, (int, float)):
    return math.log(b) if b else -math.inf
  return jnp.log(b)


def _wide_zeros(p: jax.Array) -> jax.Array:
  """Zeros like `p`, float32 at least."""
  return jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32))


def scale_by_scheduled_nadam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum_decay: float = 0.004,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """Rescales updates by NAdam with a momentum schedule (torch.optim.NAdam).

      μ_t = b1 (1 − 0.96^(0.004 t)/2),  m ← b1 m + (1 − b1) g,
      v ← b2 v + (1 − b2) g²,
      u = [ (1 − μ_t)/(1 − Πμ_{i<=t}) g + μ_{t+1}/(1 − Πμ_{i<=t+1}) m ]
          / (sqrt(v/(1 − b2^t)) + eps)

  Elementwise and odd, so `orthogonal` can lift it. Reference: T. Dozat,
  "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    momentum_decay: 0.004 in torch.
    mu_dtype: dtype of the first moment (bfloat16 halves it); None: that of the
      second, the parameters' own but float32 at least.

  Returns:
    A transformation whose updates have the dtype of the second moment.

  >>> tx = scale_by_scheduled_nadam()
  >>> u, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
  >>> u.round(3).item()  # Sign-like: Adam's first step times 1.056.
  1.055999994277954
  """

  def momentum(t):
    return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

  def init_fn(params):
    nu = jax.tree.map(_wide_zeros, params)
    return ScheduledNadamState(
      step=jnp.zeros([], jnp.int32),
      mu_product=jnp.ones([], jnp.float32),
      mu=jax.tree.map(lambda v: jnp.zeros_like(v, dtype=mu_dtype), nu),
      nu=nu,
    )

  def update_fn(updates, state, params=None):
    del params  # Unused.
    count = optax.safe_increment(state.step)
    t = count.astype(jnp.float32)
    mu_t, mu_next = momentum(t), momentum(t + 1)
    product = state.mu_product * mu_t
    g_weight = (1 - mu_t) / (1 - product)
    m_weight = mu_next / (1 - product * mu_next)
    # 1 − b2^t, without the cancellation that costs 1e-5 at t = 1.
    unbias = -jnp.expm1(t * _log(b2))

    # In the wide dtype of nu, in which mu may not be stored.
    g = optax.tree.cast_like(updates, state.nu)
    nu = optax.tree.update_moment(g, state.nu, b2, 2)
    mu = optax.tree.cast_like(state.mu, nu)
    mu = optax.tree.update_moment(g, mu, b1, 1)
    unit = jax.tree.map(lambda v: jnp.sqrt(v / unbias) + eps, nu)
    new = jax.tree.map(
      lambda g, m, u: (g_weight * g + m_weight * m) / u, g, mu, unit
    )
    mu = optax.tree.cast_like(mu, state.mu)
    return new, ScheduledNadamState(count, product, mu, nu)

  return optax.GradientTransformation(init_fn, update_fn)


def scheduled_nadam(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum_decay: float = 0.004,
  mu_dtype: Any = None,
) -> optax.GradientTransformation:
  """torch's NAdam: `scale_by_scheduled_nadam`, then the learning rate.

  `optax.nadam` has no momentum schedule (μ is 0.45 at step 1, 0.81 at 10,000).

  >>> tx = scheduled_nadam(1e-3)
  >>> u, _ = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
  >>> bool(u[0] < 0)
  True
  """
  return optax.chain(
    scale_by_scheduled_nadam(b1, b2, eps, momentum_decay, mu_dtype),
    optax.scale_by_learning_rate(learning_rate),
  )


class LookaheadState(NamedTuple):
  """State of `lookahead`."""

  step: jax.Array  # Shape (): int32.
  inner: optax.OptState
  slow: optax.Params  # Equal to the fast weights until the first sync.


def lookahead(
  inner: optax.GradientTransformation, period: int = 6, alpha: float = 0.5
) -> optax.GradientTransformationExtraArgs:
  """Lookahead on plain parameters: every `period` steps, slow and fast meet.

      slow ← slow + alpha·(fast − slow),   fast ← slow

  The first sync *creates* the slow copy from the fast weights, as in the
  recipe's torch wrapper; `optax.lookahead` creates it at step 0. Reference:
  M. Zhang et al., "Lookahead Optimizer", NeurIPS 2019.

  Args:
    inner: the fast optimizer.
    period: steps between syncs.
    alpha: weight of the fast copy in a sync, in (0, 1].

  Returns:
    A transformation whose `update` needs `params`.

  Raises:
    ValueError: `period` or `alpha` out of range; at update: no `params`.

  >>> tx = lookahead(optax.sgd(1.0), period=1)
  >>> p, state = jnp.array([0.0]), tx.init(jnp.array([0.0]))
  >>> for _ in range(2):
  ...   u, state = tx.update(jnp.array([-1.0]), state, p)
  ...   p = optax.apply_updates(p, u)
  ...   print(p.item())
  1.0
  1.5
  """
  checks.period('period', period)
  checks.weight('alpha', alpha)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    return LookaheadState(
      step=jnp.zeros([], jnp.int32),
      inner=inner.init(params),
      slow=jax.tree.map(jnp.copy, params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    checks.gradients(updates, params)
    count = optax.safe_increment(state.step)
    updates, inner_state = inner.update(
      updates, state.inner, params, **extra_args
    )
    syncs = (count % period == 0) & (count > period)

    def new_slow(p, u, slow):
      fast = (p + u).astype(p.dtype)
      slow = jnp.where(syncs, slow + alpha * (fast - slow), slow)
      return jnp.where(count <= period, fast, slow)

    def new_update(p, u, slow):
      return jnp.where(syncs, slow - p, u).astype(u.dtype)

    slow = jax.tree.map(new_slow, params, updates, state.slow)
    updates = jax.tree.map(new_update, params, updates, slow)
    return updates, LookaheadState(count, inner_state, slow)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
