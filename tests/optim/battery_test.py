"""Tests our optimizers as optax tests its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from tests.optim import steps

pytestmark = pytest.mark.slow  # Every optimizer is compiled in four ways.

VECTORS = {
  'bias': jnp.array([1.0, -2.0, 0.5]),
  'pos': jnp.array([1.0, -2.0, 0.5], jnp.bfloat16),
  'scale_raw': jnp.ones(()),
}


def nadam_in_lookahead(learning_rate):
  return optim.lookahead(optim.scheduled_nadam(learning_rate), period=2)


PERIODS = {'lookahead_period': 2, 'retraction_period': 3}
OPTIONS = PERIODS | {'lookahead_alpha': 0.25}
CASES = {
  'scheduled_nadam': (optim.scheduled_nadam, VECTORS),
  'lookahead': (nadam_in_lookahead, VECTORS),
  # Not of a seed that gradients have: the gradient that is the matrix's own
  # Gaussian has a tangent of 0, of which Adam makes steps of rounding.
  'orthogonal': (
    functools.partial(optim.orthogonal, optax.adam, **OPTIONS),
    {
      'w': steps.orthonormal((2, 3, 5), 100),
      'v': steps.orthonormal((17, 2), 100),
    },
  ),
  'lipnext_optimizer': (
    functools.partial(optim.lipnext_optimizer, **PERIODS),
    {'R': steps.orthonormal((2, 4, 4), 100)} | VECTORS,
  ),
}
every_case = pytest.mark.parametrize(
  ('make', 'params'), CASES.values(), ids=CASES
)


def check_types(tx, params, grads_dtype=None):
  """Raises unless `run` passes, and leaves move on the manifold."""

  def grads_of(params, t):
    return optax.tree.cast(steps.noise(params, t), grads_dtype)

  with jax.enable_x64(True):  # float32 leaves beside 64-bit defaults.
    end, _ = steps.run(tx, params, 4, grads_of)
  for name, leaf in end.items():
    assert np.any(leaf != params[name])
    if leaf.ndim > 1:
      assert jnp.max(optim.orthogonality_error(leaf)) < 1e-5


@every_case
def test_types_are_kept_and_one_program_serves(make, params):
  check_types(make(0.03), params)


def test_types_of_a_lifted_rule_are_kept():
  """Of bfloat16 moments and gradients, and of a schedule's rates."""
  rate = optax.linear_schedule(0.01, 0, 9)
  tx = optim.orthogonal(
    optax.adam(rate, mu_dtype='bfloat16'),
    lookahead_period=2,
    large_steps='projection',
  )
  check_types(tx, CASES['orthogonal'][1], 'bfloat16')


@every_case
def test_injected_in_scan_behind_cond_it_is_the_same_step(make, params):
  """A scan of four steps, two of them skipped by a cond, takes two steps."""
  grads = steps.noise(params, 0)
  # In the parameters' bfloat16, the default, a b2 of 0.999 would be 1.
  inject = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)
  tx = inject(learning_rate=1e-2)

  def step(carry, due):
    def update(params, state):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    return jax.lax.cond(due, update, lambda *skipped: skipped, *carry), None

  due = jnp.array([True, False, True, False])
  carry = params, tx.init(params)
  (got, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, due))(carry)
  want, _ = steps.run(make(1e-2), params, 2, lambda *_: grads)
  for name, leaf in want.items():
    # One ulp of a bfloat16 in [1, 4) is 2⁻⁶.
    atol = 8 * steps.EPS if leaf.dtype == jnp.float32 else 2**-6
    steps.assert_close(got[name], leaf, atol)


@every_case
def test_under_vmap_each_seed_moves_as_it_would_alone(make, params):
  tx = make(1e-2)
  stacked = jax.tree.map(lambda p: jnp.stack([p, p, p]), params)
  grads = steps.noise(stacked, 3)

  def three_steps(params_and_grads):
    params, grads = params_and_grads
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params

  trees = stacked, grads
  together = jax.jit(jax.vmap(three_steps))(trees)
  alone = jax.jit(functools.partial(jax.lax.map, three_steps))(trees)
  steps.assert_close(together, alone, 1e-6)


def test_the_battery_rejects_what_changes_types():
  """Planted: float32 updates of bfloat16 parameters; a state that widens."""
  widened = optax.stateless(lambda u, _: optax.tree.cast(u, jnp.float32))
  with pytest.raises(AssertionError):
    steps.run(optax.chain(optim.scheduled_nadam(1e-2), widened), VECTORS, 4)
  growing = optax.GradientTransformation(
    lambda p: jnp.zeros([], jnp.bfloat16),
    lambda u, s, p=None: (u, s + jnp.float32(1)),
  )
  with pytest.raises(AssertionError):
    steps.run(growing, VECTORS, 4)
