import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from lipnext_jax import certify
from lipnext_jax.attacks import target as target_lib
from tests.attacks import targets


def test_fast_targets_are_the_rigorous_ones_but_for_rounding():
  low = targets.MODEL.clone(dtype=jnp.bfloat16)  # However it was trained.
  target = target_lib.certified_target(
    'fast', low, targets.PARAMS, targets.IMAGES, batch_size=5
  )
  exact = targets.exact()
  np.testing.assert_array_equal(target.predictions, exact.predictions)
  # Logits are differences of numbers of size 12: rounding of 1e-6 each.
  constants = certify.prove_constants(targets.PARAMS)
  floor = np.max(certify.margin_floor(targets.IMAGES, constants))
  apart = pdist(targets.PARAMS['head']['kernel'])
  lost = exact.radii - target.radii
  assert np.all(lost > floor / 2 / np.max(apart))
  assert np.all(lost < floor / np.min(apart) + 1e-5)
  assert not target.closed
  logits = target.logits(target.images)
  assert target.images.dtype == logits.dtype == np.float32
  assert target.lipschitz == certify.lipschitz_bound(targets.PARAMS)


def test_rigorous_targets_hold_what_the_certifier_says():
  found = certify.rigorous_radius(targets.MODEL, targets.PARAMS, targets.IMAGES)
  for target in (targets.exact(), targets.certified(batch_size=5)):
    np.testing.assert_array_equal(target.predictions, found.predictions)
    np.testing.assert_allclose(target.radii, found.radii, rtol=1e-12)
    assert target.closed
    logits = target.logits(target.images)
    assert target.images.dtype == logits.dtype == np.float64


@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_logits_come_from_the_format_of_the_images(dtype):
  images = np.array([[1.0], [0.5]]).astype(dtype)
  target = targets.linear([[1.0, -1.0]], [0.0, 0.0], images, [1, 1])
  assert target.logits(images).dtype == dtype
  # What the format cannot hold is rounded away before the function sees it.
  third = target.logits(np.full([1, 1], 1 / 3))[0, 0]
  assert third == np.asarray(1 / 3, dtype)


# Class 1 where x_0 > 1/2.
TARGET = targets.linear(
  [[-1.0, 1.0], [0.0, 0.0]],
  [1.0, 0.0],
  np.array([[0.75, 0.5], [0.25, 0.5]]),
  [0.25, 0.25],
)


def test_a_ledger_starts_with_the_images_themselves():
  ledger = target_lib.Ledger(TARGET)
  assert TARGET.predictions.tolist() == [1, 0]
  assert not ledger.broken.any()
  assert ledger.certified_runs == 0
  assert ledger.attacks == {'unperturbed': {'runs': 2, 'successes': 0}}
  assert np.isinf(ledger.anywhere.distances).all()
  # Planted: a prediction that is not the function's.
  ledger = target_lib.Ledger(TARGET._replace(predictions=np.array([0, 0])))
  assert ledger.broken.tolist() == [True, False]
  assert ledger.anywhere.distances.tolist() == [0, np.inf]


@pytest.mark.parametrize(
  ('x', 'closed', 'broken'),
  [
    (0.5, True, True),  # A tie on the sphere: class 0 wins it.
    (0.5, False, False),
    (np.nextafter(0.5, 1), True, False),  # Inside, and the answer holds.
    (np.nextafter(0.5, 0), True, False),  # It changes, one unit outside.
    (np.nan, True, False),  # No point of the ball.
  ],
)
def test_broken_is_decided_to_the_last_bit(x, closed, broken):
  ledger = target_lib.Ledger(TARGET._replace(closed=closed))
  points = TARGET.images.copy()
  points[0, 0] = x
  ledger.judge('walk', points, at_radius=True)
  assert ledger.broken.tolist() == [broken, False]
  assert ledger.certified_runs == 2


def test_the_nearest_is_kept_with_and_without_the_box():
  ledger = target_lib.Ledger(TARGET)
  points = np.array([[0.4, 0.5], [0.45, 0.5], [0.3, 0.5]])
  for point in points:
    ledger.judge('some', np.stack([point, [0.6, 1.01]]))
  assert ledger.attacks['some'] == {'runs': 6, 'successes': 6}
  np.testing.assert_allclose(
    ledger.anywhere.distances, [0.3, np.hypot(0.35, 0.51)]
  )
  np.testing.assert_allclose(ledger.in_box.distances, [0.3, np.inf])
  np.testing.assert_array_equal(
    ledger.anywhere.points, [[0.45, 0.5], [0.6, 1.01]]
  )
  assert ledger.anywhere.answers.tolist() == [0, 1]
  ledger.judge('worse', np.array([[0.2, 0.5], [0.7, 1.01]]))
  np.testing.assert_allclose(ledger.in_box.distances, [0.3, np.inf])
