"""Tests the groups of parameters, and slow weights inside all wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from tests.optim.steps import assert_close
from tests.optim.steps import EPS
from tests.optim.steps import noise
from tests.optim.steps import run


@pytest.fixture
def params():
  return {
    'stem': {'Q': jnp.eye(3), 'bias': jnp.ones(3)},
    'blocks': {'R': jnp.stack([jnp.eye(4)] * 2), 'M': jnp.eye(4)},
    'head': {'kernel': jnp.ones((4, 2))},
  }


def test_labels_are_by_name(params):
  assert optim.orthogonal_labels(params) == {
    'stem': {'Q': 'orthogonal', 'bias': 'euclidean'},
    'blocks': {'R': 'orthogonal', 'M': 'orthogonal'},
    'head': {'kernel': 'euclidean'},
  }
  for name in ('W', 'RR', 'R2', 'kernels', 'mybias'):
    with pytest.raises(ValueError, match=f"'a/{name}' matches no rule"):
      optim.orthogonal_labels({'a': {name: jnp.eye(2)}})
  one = {'a': {'R': jnp.eye(2)}}
  twice = [('R', 'orthogonal'), ('a/', 'orthogonal')]
  assert optim.orthogonal_labels(one, twice) == {'a': {'R': 'orthogonal'}}
  two = [('R', 'orthogonal'), ('a/', 'euclidean')]
  with pytest.raises(ValueError, match=r'matches .*euclidean.*orthogonal'):
    optim.orthogonal_labels(one, two)


def test_the_recipe_is_its_parts(params):
  rate = optax.linear_schedule(1e-2, 1e-3, 5)
  options = {'lookahead_period': 2, 'retraction_period': 3}
  got, state = run(
    optim.lipnext_optimizer(rate, clip_norm=None, **options), params, 5
  )
  parts = optax.partition(
    {
      'orthogonal': optim.orthogonal(optim.scheduled_nadam(rate), **options),
      'euclidean': optim.lookahead(optim.scheduled_nadam(rate), 2, 0.5),
    },
    optim.orthogonal_labels,
  )
  want, want_state = run(parts, params, 5)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  slow = optim.slow_params(state, got)
  jax.tree.map(
    np.testing.assert_array_equal, slow, optim.slow_params(want_state, got)
  )
  for name in ('R', 'M'):
    assert jnp.max(optim.orthogonality_error(got['blocks'][name])) < 20 * EPS
  # Step 5 has moved the fast weights away from the sync of step 4.
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), got, slow)
  assert all(jax.tree.leaves(moved))


def test_the_gradient_is_clipped_over_both_groups(params):
  grads = noise(params, 0)

  def update(bound, scale=1.0):
    tx = optim.lipnext_optimizer(
      1e-3, inner=optax.sgd, clip_norm=bound, lookahead_period=None
    )
    scaled = jax.tree.map(lambda g: g * scale, grads)
    return jax.jit(tx.update)(scaled, tx.init(params), params)[0]

  scaled = update(None, 0.5 / optax.tree.norm(grads))
  assert_close(update(0.5), scaled, 1e-3 * 4 * EPS)
  # An infinite bound clips nothing.
  jax.tree.map(np.testing.assert_array_equal, update(np.inf), update(None))


def test_a_fresh_state_can_be_donated(params):
  """No two arrays of the state share their memory."""
  tx = optim.lipnext_optimizer(1e-2)
  update = jax.jit(tx.update, donate_argnums=1)
  update(params, tx.init(params), params)
  shared = [jnp.zeros(2)] * 2
  with pytest.raises(Exception, match='donate the same buffer twice'):
    jax.jit(lambda s: s, donate_argnums=0)(shared)


WRAPPERS = {
  'alone': lambda tx: tx,
  'chain': lambda tx: optax.chain(optax.identity(), optax.chain(tx)),
  'masked': lambda tx: optax.masked(
    tx, lambda p: jax.tree.map(lambda _: True, p)
  ),
  'partition': lambda tx: optax.partition(
    {'a': tx}, lambda p: jax.tree.map(lambda _: 'a', p)
  ),
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 1),
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 1),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_slow_weights_are_found_inside(wrapper):
  """After 3 steps, the slow weights are those of the sync at step 2."""
  params = {'blocks': [{'R': jnp.eye(3)}, {'bias': jnp.ones(2)}]}
  bare = optim.lipnext_optimizer(
    1e-2, lookahead_period=2, retraction_period=None
  )
  fast, state = run(WRAPPERS[wrapper](bare), params, 3)
  slow = optim.slow_params(state, fast)
  synced, _ = run(bare, params, 2)
  assert jax.tree.structure(slow) == jax.tree.structure(params)
  assert_close(slow, synced)
  assert np.any(slow['blocks'][0]['R'] != fast['blocks'][0]['R'])


def test_slow_weights_of_one_group_only():
  params = {'R': jnp.eye(2), 'bias': jnp.ones(2)}
  tx = optax.partition(
    {
      'o': optim.orthogonal(optax.sgd(0.1), lookahead_period=9),
      'e': optax.sgd(0.1),
    },
    {'R': 'o', 'bias': 'e'},
  )
  fast, state = run(tx, params, 1)
  slow = optim.slow_params(state, fast)
  np.testing.assert_array_equal(slow['R'], params['R'])  # Not yet synced.
  np.testing.assert_array_equal(slow['bias'], fast['bias'])
