"""Tests losses against their formulas in NumPy, and projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.attacks import objectives


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(20, 5)).astype(np.float32)
  return logits, rng.integers(0, 5, 20), rng.integers(0, 5, 20)


def test_losses_are_their_formulas(batch):
  found = {
    name: jax.jit(jax.vmap(loss))(*batch)
    for name, loss in objectives.LOSSES.items()
  }
  for i, (f, y, r) in enumerate(zip(*batch, strict=True)):
    others = np.delete(f, y)
    top = np.sort(f)[::-1]
    expected = {
      'cross_entropy': np.log(np.sum(np.exp(f))) - f[y],
      'dlr': -(f[y] - np.max(others)) / (top[0] - top[2]),
      'rival_margin': f[r] - f[y],
    }
    for name, right in expected.items():
      np.testing.assert_allclose(found[name][i], right, rtol=1e-5, atol=1e-6)


def test_dlr_with_two_classes_and_with_ties():
  first = jnp.array(0)
  assert objectives.dlr(jnp.array([1.0, 3.0]), first, first).item() == 2
  value, grad = jax.jit(jax.value_and_grad(objectives.dlr))(
    jnp.zeros(4), first, first
  )
  assert value == 0
  assert not np.isnan(grad).any()


def test_the_lead_is_positive_exactly_where_the_answer_is_another(batch):
  logits, labels, _ = batch
  score = jax.vmap(objectives.rival_lead)(logits, labels)
  np.testing.assert_array_equal(score > 0, np.argmax(logits, -1) != labels)


@pytest.mark.parametrize('box', [False, True])
def test_projection_stays_in_the_set_and_moves_nothing_inside(box):
  rng = np.random.default_rng(1)
  center = rng.random((50, 3, 4)).astype(np.float32)
  epsilons = rng.random(50).astype(np.float32)
  x = center + rng.normal(size=center.shape).astype(np.float32)
  project = jax.jit(jax.vmap(objectives.project, in_axes=(0, 0, 0, None)))
  y = project(x, center, epsilons, box)
  distance = np.linalg.norm((y - center).reshape(50, -1), axis=-1)
  assert np.all(distance <= epsilons + 1e-6)  # Coordinates up to 4 round.
  if box:
    assert np.all((y >= 0) & (y <= 1))
  else:  # All of these points were outside: they land on the sphere.
    np.testing.assert_allclose(distance, epsilons, atol=1e-6)
  again = project(y, center, epsilons + 2e-6, box)
  np.testing.assert_allclose(again, y, atol=2e-7)


def test_random_starts_fill_the_ball_evenly():
  """The mean distance is ε d/(d + 1), here 3/4 of ε."""
  center = jnp.zeros([4000, 3])
  start = jax.jit(jax.vmap(objectives.random_start))
  keys = jax.random.split(jax.random.key(0), 4000)
  points = start(keys, center, jnp.full(4000, 2.0))
  distance = np.linalg.norm(points, axis=-1)
  assert distance.max() <= 2 + 1e-6
  # Four standard errors: the deviation is 0.19 in a ball of radius 1.
  np.testing.assert_allclose(np.mean(distance) / 2, 0.75, atol=0.0125)
  np.testing.assert_allclose(np.mean(points, axis=0), 0, atol=0.06)
