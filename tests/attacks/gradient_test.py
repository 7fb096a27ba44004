"""Tests gradient attacks on linear functions, where the answer is known."""

import numpy as np
import pytest

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import gradient
from lipnext_jax.attacks import objectives

STEPS = 20


@pytest.fixture(scope='module')
def linear(make_linear):
  """Returns a linear target, and each image's distance to the edge."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(6, 3))
  images = rng.random((40, 2, 3)) * 0.2 + 0.4
  target = make_linear(weights, np.zeros(3), images, np.ones(40))
  logits = target.logits(images)
  distances = np.full([40, 3], np.inf)
  for i, p in enumerate(target.predictions):
    for j in range(3):
      if j != p:
        gap = np.linalg.norm(weights[:, p] - weights[:, j])
        distances[i, j] = (logits[i, p] - logits[i, j]) / gap
  # Three batches, the last one padded.
  target = target._replace(radii=distances.min(axis=-1), batch_size=16)
  return target, distances.argmin(axis=-1)


def answers_changed(target, points):
  return np.mean(target.answers(points) != target.predictions)


@pytest.mark.parametrize('loss', objectives.LOSSES)
@pytest.mark.parametrize('method', gradient.METHODS)
def test_attacks_find_the_nearest_edge_and_nothing_before(linear, method, loss):
  target, nearest = linear
  search = gradient.Search(method, loss, STEPS)
  # PGD's constant step leaves an angle; cross-entropy climbs towards all rivals
  # at once, which is not where the nearest edge is.
  enough = {'pgd': 1.15, 'apgd': 1.02}[method]
  enough = 3.0 if loss == 'cross_entropy' else enough
  for factor in (0.9999, enough):
    radii = target.radii * factor
    points = gradient.attack(target, search, radii, nearest, seed=0)
    assert np.all(exact.distances(target.images, points) <= radii + 1e-12)
    if factor < 1:
      assert answers_changed(target, points) == 0
    else:
      assert answers_changed(target, points) > 0.95


def test_shrinking_steps_come_closer_than_constant_ones(linear):
  """At 1.002 times the distance, APGD succeeds where PGD mostly fails."""
  target, nearest = linear
  rates = {}
  for method in gradient.METHODS:
    search = gradient.Search(method, 'rival_margin', STEPS)
    points = gradient.attack(
      target, search, target.radii * 1.002, nearest, seed=0
    )
    rates[method] = answers_changed(target, points)
  assert rates['apgd'] > 0.9
  assert rates['pgd'] < 0.5


def test_the_box_is_kept(linear):
  target, nearest = linear
  search = gradient.Search('apgd', 'rival_margin', STEPS)
  radii = np.full(40, 5.0)  # Reaches far beyond [0, 1].
  points = gradient.attack(target, search, radii, nearest, seed=0, box=True)
  assert np.all((points >= 0) & (points <= 1))
  assert np.any((points == 0) | (points == 1))
  free = gradient.attack(target, search, radii, nearest, seed=0)
  assert np.any((free < 0) | (free > 1))


def test_seeds_restart_elsewhere_and_repeat(linear):
  target, nearest = linear
  search = gradient.Search('pgd', 'rival_margin', STEPS)

  def run(seed):
    return gradient.attack(target, search, target.radii, nearest, seed=seed)

  np.testing.assert_array_equal(run(0), run(0))
  assert np.any(run(0) != run(1))


def test_checkpoints_are_those_of_the_paper():
  """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
  at = np.flatnonzero(gradient.checkpoints(100)) + 1
  assert at.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
  windows = gradient.checkpoints(100)
  assert windows[at - 1].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


def test_nearest_rivals_are_sorted_and_never_the_answer(linear):
  target, _ = linear
  logits = target.logits(target.images)
  first = gradient.nearest_rivals(target, 0)
  second = gradient.nearest_rivals(target, 1)
  np.testing.assert_array_equal(gradient.nearest_rivals(target, 2), first)
  order = np.argsort(-logits, axis=-1)
  np.testing.assert_array_equal(first, order[:, 1])
  np.testing.assert_array_equal(second, order[:, 2])
