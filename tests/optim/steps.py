"""Steps of optimizers on drawn problems, with checks of all types."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

EPS = float(np.finfo(np.float32).eps)


def noise(params, seed):
  """Draws normal gradients like `params`."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
  )


def orthonormal(shape, seed=0):
  """Draws matrices [..., m, n] with orthonormal rows or columns, float32."""
  x = np.random.default_rng(seed).normal(size=shape)
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  return jnp.asarray(u @ vt, jnp.float32)


def low(x):
  """Rounds entries to bfloat16, in their own dtype."""
  return x.astype(jnp.bfloat16).astype(x.dtype)


def taylor(a, order):
  """Returns Σ_{1<=k<=order} A^k/k! in the dtype of A."""
  term = out = a
  for k in range(2, order + 1):
    term = term @ a / k
    out = out + term
  return out


def run(tx, params, steps, grads_of=None, state=None):
  """Takes jitted steps with gradients `grads_of(params, t)`, or with noise.

  Raises unless the step compiles once, no type of the parameters or of the
  state ever changes, and updates have the types of the parameters. Returns the
  parameters and the state.
  """
  grads_of = grads_of or (lambda params, t: noise(params, t + 1))
  if state is None:
    state = tx.init(params)
    traced = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jax.typeof, traced) == jax.tree.map(jax.typeof, state)
  types = jax.tree.map(jax.typeof, (params, state))
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
  assert len(traces) == 1
  return params, state


def assert_close(got, want, atol=4 * EPS):
  """Compares two trees, bfloat16 leaves included, to an absolute tolerance."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=atol
    ),
    got,
    want,
  )
