import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import gradient
from tests.attacks import targets


def test_losses_are_their_formulas():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(20, 5)).astype(np.float32)
  batch = logits, rng.integers(0, 5, 20), rng.integers(0, 5, 20)
  found = {
    name: jax.jit(jax.vmap(loss))(*batch)
    for name, loss in gradient.LOSSES.items()
  }
  found['lead'] = jax.vmap(gradient.rival_lead)(*batch[:2])
  for i, (f, y, r) in enumerate(zip(*batch, strict=True)):
    top = np.sort(f)[::-1]
    lead = np.max(np.delete(f, y)) - f[y]
    expected = {
      'cross_entropy': np.log(np.sum(np.exp(f))) - f[y],
      'dlr': lead / (top[0] - top[2]),
      'rival_margin': f[r] - f[y],
      'lead': lead,
    }
    for name, right in expected.items():
      np.testing.assert_allclose(found[name][i], right, rtol=1e-5, atol=1e-6)

  # Two classes have no third logit, and ties no spread.
  assert gradient.dlr(jnp.array([1.0, 3.0]), jnp.array(0)).item() == 2
  value, grad = jax.value_and_grad(gradient.dlr)(jnp.zeros(4), jnp.array(0))
  assert value == 0
  assert not np.isnan(grad).any()


def make_linear():
  """Returns a linear target with tight radii, and the nearest rivals."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(6, 3))
  images = rng.random((40, 2, 3)) * 0.2 + 0.4
  target = targets.linear(weights, np.zeros(3), images, np.ones(40))
  p, logits = target.predictions, target.logits(images)
  margins = np.max(logits, axis=-1, keepdims=True) - logits
  gaps = np.linalg.norm(weights.T[p][:, None] - weights.T, axis=-1)
  gaps[np.arange(40), p] = 1e-9
  margins[np.arange(40), p] = np.inf
  distances = margins / gaps
  # Three batches, the last one padded.
  target = target._replace(radii=distances.min(axis=-1), batch_size=16)
  return target, distances.argmin(axis=-1)


TARGET, NEAREST = make_linear()


def attack(method, loss, radii, *, seed=0, box=False):
  """Returns the points, and the share of changed answers."""
  points = gradient.attack(
    TARGET, method, loss, radii, NEAREST, steps=20, seed=seed, box=box
  )
  return points, np.mean(TARGET.answers(points) != TARGET.predictions)


@pytest.mark.parametrize('loss', gradient.LOSSES)
@pytest.mark.parametrize('method', ['pgd', 'apgd'])
def test_attacks_find_the_nearest_edge_and_nothing_before(method, loss):
  # PGD's constant step leaves an angle; cross-entropy climbs towards all rivals
  # at once, which is not where the nearest edge is.
  enough = {'pgd': 1.15, 'apgd': 1.02}[method]
  enough = 3.0 if loss == 'cross_entropy' else enough
  for factor in (0.9999, enough):
    radii = TARGET.radii * factor
    points, changed = attack(method, loss, radii)
    assert np.all(exact.distances(TARGET.images, points) <= radii + 1e-12)
    assert changed > 0.95 if factor > 1 else changed == 0


def test_shrinking_steps_come_closer_than_constant_ones():
  """At 1.002 times the distance, APGD succeeds where PGD mostly fails."""
  radii = 1.002 * TARGET.radii
  assert attack('apgd', 'rival_margin', radii)[1] > 0.9
  assert attack('pgd', 'rival_margin', radii)[1] < 0.5


def test_the_box_is_kept():
  radii = np.full(40, 5.0)  # Reaches far beyond [0, 1].
  points, _ = attack('apgd', 'rival_margin', radii, box=True)
  assert np.all((points >= 0) & (points <= 1))
  assert np.any((points == 0) | (points == 1))
  free, _ = attack('apgd', 'rival_margin', radii)
  assert np.any((free < 0) | (free > 1))


def test_seeds_restart_elsewhere_and_repeat():
  radii = TARGET.radii
  first, again, other = (
    attack('pgd', 'rival_margin', radii, seed=seed)[0] for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


def test_checkpoints_are_those_of_the_paper():
  """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
  windows = gradient.checkpoints(100)
  at = np.array([22, 41, 57, 70, 80, 87, 93, 99])
  assert (np.flatnonzero(windows) + 1).tolist() == at.tolist()
  assert windows[at - 1].tolist() == np.diff(at, prepend=0).tolist()


def test_nearest_rivals_are_sorted_and_never_the_answer():
  order = np.argsort(-TARGET.logits(TARGET.images), axis=-1)
  for rank, column in ((0, 1), (1, 2), (2, 1)):
    rivals = gradient.nearest_rivals(TARGET, rank)
    np.testing.assert_array_equal(rivals, order[:, column])
