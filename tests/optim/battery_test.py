"""Tests our optimizers as optax tests its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from tests.optim.steps import assert_close
from tests.optim.steps import EPS
from tests.optim.steps import noise
from tests.optim.steps import orthonormal
from tests.optim.steps import run

pytestmark = pytest.mark.slow  # Every optimizer is compiled in four ways.


def vectors(dtype):
  return {
    'bias': jnp.array([1.0, -2.0, 0.5], dtype),
    'pos': jnp.ones((), dtype),
  }


def lifted(learning_rate):
  return optim.orthogonal(optax.adam, learning_rate, retraction_period=3)


recipe = functools.partial(
  optim.lipnext_optimizer, lookahead_period=2, retraction_period=3
)


def nadam_in_lookahead(learning_rate):
  return optim.lookahead(optim.scheduled_nadam(learning_rate), period=2)


CASES = {
  'scheduled_nadam': (optim.scheduled_nadam, vectors('float32')),
  'scheduled_nadam, bfloat16': (optim.scheduled_nadam, vectors('bfloat16')),
  'lookahead': (nadam_in_lookahead, vectors('float32')),
  'lookahead, bfloat16': (nadam_in_lookahead, vectors('bfloat16')),
  # Not of a seed that gradients have: the gradient that is the matrix's own
  # Gaussian has a tangent of 0, of which Adam makes steps of rounding.
  'orthogonal': (
    lifted,
    {'w': orthonormal((2, 3, 5), 100), 'v': orthonormal((17, 2), 100)},
  ),
  'lipnext_optimizer': (
    recipe,
    {'R': orthonormal((2, 4, 4), 100)} | vectors('bfloat16'),
  ),
}
every_case = pytest.mark.parametrize('case', CASES)


def lift(rule):
  return lambda rate: optim.orthogonal(
    rule(rate), lookahead_period=2, retraction_period=None
  )


RULES = {
  'momentum': lift(lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)),
  'bfloat16 moment': lift(lambda rate: optax.adam(rate, mu_dtype='bfloat16')),
  'scheduled nadam': lift(optim.scheduled_nadam),
  'lion': lift(optax.lion),
  'schedule': lift(lambda rate: optax.adam(optax.linear_schedule(rate, 0, 9))),
  'projection': lambda rate: optim.orthogonal(
    optax.adam, rate, large_steps='projection'
  ),
}


@pytest.mark.parametrize('case', [*CASES, *RULES])
def test_types_are_kept_and_one_program_serves(case):
  make, params = CASES.get(case) or (RULES[case], CASES['orthogonal'][1])

  def grads_of(params, t):
    grads = noise(params, t)
    return optax.tree.cast(grads, 'bfloat16' if case == 'projection' else None)

  with jax.enable_x64(True):  # float32 leaves beside 64-bit defaults.
    end, _ = run(make(0.03 if case in CASES else 0.01), params, 4, grads_of)
  for name, leaf in end.items():
    assert np.any(leaf != params[name])
    if leaf.ndim > 1:
      assert jnp.max(optim.orthogonality_error(leaf)) < 1e-5


@every_case
def test_injected_in_scan_behind_cond_it_is_the_same_step(case):
  """A scan of four steps, two of them skipped by a cond, takes two steps."""
  make, params = CASES[case]
  grads = noise(params, 0)
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
  plain = make(1e-2)
  want, state = params, plain.init(params)
  for _ in range(2):
    updates, state = jax.jit(plain.update)(grads, state, want)
    want = optax.apply_updates(want, updates)
  for name, leaf in want.items():
    # One ulp of a bfloat16 in [1, 4) is 2⁻⁶.
    atol = 8 * EPS if leaf.dtype == jnp.float32 else 2**-6
    assert_close(got[name], leaf, atol)


@every_case
def test_accumulated_gradients_are_their_mean(case):
  make, params = CASES[case]
  first, second = noise(params, 1), noise(params, 2)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
  want, _ = jax.jit(make(1e-2).update)(mean, make(1e-2).init(params), params)
  tx = optax.MultiSteps(make(1e-2), 2)
  state = tx.init(params)
  for grads in (first, second):
    got, state = jax.jit(tx.update)(grads, state, params)
  for name, leaf in want.items():
    eps = float(jnp.finfo(leaf.dtype).eps)
    assert_close(got[name], leaf, 32 * eps * 1e-2)


@every_case
def test_under_vmap_each_seed_moves_as_it_would_alone(case):
  make, params = CASES[case]
  tx = make(1e-2)
  stacked = jax.tree.map(lambda p: jnp.stack([p, p, p]), params)
  grads = noise(stacked, 3)

  def three_steps(params, grads):
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params

  together = jax.jit(jax.vmap(three_steps))(stacked, grads)
  three_steps = jax.jit(three_steps)
  for seed in range(3):
    of_seed = functools.partial(jax.tree.map, lambda x, s=seed: x[s])
    alone = three_steps(params, of_seed(grads))
    assert_close(of_seed(together), alone, 1e-6)


def test_the_battery_rejects_what_changes_types():
  """Planted: float32 updates of bfloat16 parameters; a state that widens."""
  params = vectors('bfloat16')
  widened = optax.stateless(
    lambda u, _: jax.tree.map(lambda x: x.astype(jnp.float32), u)
  )
  with pytest.raises(AssertionError):
    run(optax.chain(optim.scheduled_nadam(1e-2), widened), params, 4)
  growing = optax.GradientTransformation(
    lambda p: jnp.zeros([], jnp.bfloat16),
    lambda u, s, p=None: (u, s + jnp.float32(1)),
  )
  with pytest.raises(AssertionError):
    run(growing, params, 4)
