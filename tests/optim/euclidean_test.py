"""Tests NAdam against torch's algorithm in float64, lookahead by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipnext_jax import optim


def torch_nadam(grads, lr, b1=0.9, b2=0.999, eps=1e-8, momentum_decay=4e-3):
  """Yields the weights of torch.optim.NAdam's documented steps, in float64."""
  m, v, mu_product, theta = 0.0, 0.0, 1.0, 0.0
  for t, g in enumerate(np.asarray(grads, np.float64), start=1):
    mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product *= mu
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    m_hat = mu_next * m / (1 - mu_product * mu_next)
    m_hat = m_hat + (1 - mu) * g / (1 - mu_product)
    v_hat = v / (1 - b2**t)
    theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
    yield theta


def check_nadam(tx, steps=200, **options):
  """Raises unless every step is torch's, on gradients of many magnitudes.

  Each step rounds by a few eps of its own size (at most 2·lr); they add up.
  """
  lr = 1e-2
  rng = np.random.default_rng(0)
  scales = 10.0 ** np.arange(-6, 3)
  grads = (rng.normal(size=(steps, 9)) * scales).astype(np.float32)
  params = jnp.zeros(9)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for t, want in enumerate(torch_nadam(grads, lr, **options), start=1):
    updates, state = update(grads[t - 1], state)
    params = optax.apply_updates(params, updates)
    tolerance = t * 8 * np.finfo(np.float32).eps * 2 * lr
    np.testing.assert_allclose(params, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
  'options',
  [{}, {'b1': 0.8, 'b2': 0.99}, {'momentum_decay': 0.1}, {'eps': 1e-3}],
  ids=str,
)
def test_nadam_is_torchs(options):
  check_nadam(optim.scheduled_nadam(1e-2, **options), **options)


@pytest.mark.parametrize('mu_dtype', [None, 'bfloat16'])
def test_nadam_computes_in_float32_and_answers_in_its_parameters_type(mu_dtype):
  tx = optim.scheduled_nadam(1e-3, mu_dtype=mu_dtype)
  params, grads = jnp.ones(3, 'bfloat16'), jnp.ones(3)
  state = tx.init(params)
  updates, new_state = tx.update(grads, state, params)
  assert updates.dtype == params.dtype
  assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
  assert state[0].nu.dtype == jnp.float32
  assert state[0].mu.dtype == (mu_dtype or jnp.float32)
  bare, _ = tx.update(grads, state)  # Without parameters.
  assert bare.dtype == grads.dtype


def test_the_nadam_check_rejects():
  for fault in (
    optax.nadam(1e-2),  # Without the schedule of the momentum.
    optax.adam(1e-2),
    optim.scheduled_nadam(1e-2, momentum_decay=0.005),
    optim.scheduled_nadam(1e-2, b2=0.9991),
    optim.scheduled_nadam(1e-2, eps=0.0),
    optim.scheduled_nadam(1.001e-2),
    optim.scheduled_nadam(1e-2, mu_dtype='bfloat16'),
  ):
    with pytest.raises(AssertionError):
      check_nadam(fault)


def check_lookahead(tx):
  """Raises unless fast weights that run +1 a step move as by hand (k=2, η=½).

  1, 2 | first sync: slow = 2 | 3, 4 → slow = 2 + (4 − 2)/2 = 3 | 4, 5 →
  slow = 3 + (5 − 3)/2 = 4 | 5, 6 → 5.
  """
  params = jnp.zeros(1)
  state = tx.init(params)
  path, slow = [], []
  for _ in range(8):
    updates, state = tx.update(-jnp.ones(1), state, params)
    params = optax.apply_updates(params, updates)
    path.append(params.item())
    slow.append(state.slow.item())
  assert path == [1, 2, 3, 3, 4, 4, 5, 5]
  assert slow == [1, 2, 2, 3, 3, 4, 4, 5]


def test_lookahead_by_hand():
  right = optim.lookahead(optax.sgd(1.0), period=2, weight=0.5)
  check_lookahead(right)

  def init_synced(params):
    return right.init(params)._replace(step=jnp.int32(2))

  for fault in (
    optim.lookahead(optax.sgd(1.0), period=3, weight=0.5),
    optim.lookahead(optax.sgd(1.0), period=2, weight=0.501),
    optim.lookahead(optax.sgd(1.001), period=2, weight=0.5),
    optax.GradientTransformation(init_synced, right.update),
  ):
    with pytest.raises(AssertionError):
      check_lookahead(fault)


def test_lookahead_passes_extra_arguments_on():
  inner = optax.GradientTransformationExtraArgs(
    lambda _: 0, lambda updates, state, params, *, value: (updates, value)
  )
  tx = optim.lookahead(inner)
  x = jnp.ones(1)
  assert tx.update(x, tx.init(x), x, value=7)[1].inner == 7
