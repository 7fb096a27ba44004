"""Fixtures that run a transformation and check its types."""

import jax
import numpy as np
import optax
import pytest


def _run_counted(tx, params, grads_of, steps=4):
  """Takes `steps` jitted steps with the gradients `grads_of(params, t)`.

  Raises unless the step compiles once, no type of the parameters or of the
  state ever changes, and updates have the types of the parameters. Returns the
  parameters and the state.
  """
  state = tx.init(params)
  types = jax.tree.map(jax.typeof, (params, state))
  assert jax.tree.map(jax.typeof, jax.eval_shape(tx.init, params)) == types[1]
  traces = []

  @jax.jit
  def step(grads, state, params):
    traces.append(1)
    updates, state = tx.update(grads, state, params)
    same = jax.tree.map(lambda u, p: u.dtype == p.dtype, updates, params)
    assert all(jax.tree.leaves(same))
    return optax.apply_updates(params, updates), state

  for t in range(steps):
    params, state = step(grads_of(params, t), state, params)
    assert jax.tree.map(jax.typeof, (params, state)) == types
  assert len(traces) == 1 or not steps
  return params, state


@pytest.fixture(scope='session')
def run_counted():
  """Returns `_run_counted`."""
  return _run_counted


@pytest.fixture(scope='session')
def noise():
  """Returns a function (params, seed) → normal gradients like them."""

  def make(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
      lambda p: jax.numpy.asarray(rng.normal(size=p.shape), p.dtype), params
    )

  return make
