"""Tests the groups of parameters, and slow weights inside all wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim
from tests.optim import steps


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
  got, state = steps.run(
    optim.lipnext_optimizer(rate, clip_norm=None, **options), params, 5
  )
  parts = optax.partition(
    {
      'orthogonal': optim.orthogonal(optim.scheduled_nadam(rate), **options),
      'euclidean': optim.lookahead(optim.scheduled_nadam(rate), 2, 0.5),
    },
    optim.orthogonal_labels,
  )
  want, want_state = steps.run(parts, params, 5)
  steps.assert_close(got, want, 0)
  slow = optim.slow_params(state, got)
  steps.assert_close(slow, optim.slow_params(want_state, got), 0)
  # Step 5 has moved the fast weights away from the sync of step 4.
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), got, slow)
  assert all(jax.tree.leaves(moved))


def test_the_gradient_is_clipped_over_both_groups(params):
  grads = steps.noise(params, 0)

  def update(bound, scale=1.0):
    tx = optim.lipnext_optimizer(
      1e-3, inner=optax.sgd, clip_norm=bound, lookahead_period=None
    )
    scaled = jax.tree.map(lambda g: g * scale, grads)
    return jax.jit(tx.update)(scaled, tx.init(params), params)[0]

  scaled = update(None, 0.5 / optax.tree.norm(grads))
  steps.assert_close(update(0.5), scaled, 1e-3 * 4 * steps.EPS)
  # An infinite bound clips nothing.
  steps.assert_close(update(np.inf), update(None), 0)


def test_a_fresh_state_can_be_donated(params):
  """No two arrays of the state share their memory."""
  tx = optim.lipnext_optimizer(1e-2)
  update = jax.jit(tx.update, donate_argnums=1)
  update(params, tx.init(params), params)
  shared = [jnp.zeros(2)] * 2
  with pytest.raises(Exception, match='donate the same buffer twice'):
    jax.jit(lambda s: s, donate_argnums=0)(shared)


def test_slow_weights_are_found_inside_any_wrappers():
  """After 3 steps, the slow weights are those of the sync at step 2."""
  params = {'blocks': [{'R': jnp.eye(3)}, {'bias': jnp.ones(2)}]}
  options = {'lookahead_period': 2, 'retraction_period': None}
  bare = optim.lipnext_optimizer(1e-2, **options)
  synced, _ = steps.run(bare, params, 2)
  params['head'] = jnp.ones(2)  # Which has no slow weights.
  tx = optax.chain(optax.identity(), optax.chain(bare))
  tx = optax.masked(tx, {'blocks': True, 'head': False})
  tx = optax.partition({'a': tx}, jax.tree.map(lambda _: 'a', params))
  tx = optax.apply_if_finite(optax.MultiSteps(tx, 1), 1)
  fast, state = steps.run(tx, params, 3)
  slow = optim.slow_params(state, fast)
  steps.assert_close(slow, synced | {'head': fast['head']})
  assert np.any(slow['blocks'][0]['R'] != fast['blocks'][0]['R'])
