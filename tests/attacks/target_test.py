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
  assert target.images.dtype == target.logits(target.images).dtype
  assert target.images.dtype == np.float32
  assert target.lipschitz == certify.lipschitz_bound(targets.PARAMS)


def test_rigorous_targets_hold_what_the_certifier_says():
  found = certify.rigorous_radius(targets.MODEL, targets.PARAMS, targets.IMAGES)
  for target in (targets.exact(), targets.certified(batch_size=5)):
    np.testing.assert_array_equal(target.predictions, found.predictions)
    np.testing.assert_allclose(target.radii, found.radii, rtol=1e-12)
    assert target.closed
    assert target.images.dtype == target.logits(target.images).dtype
    assert target.images.dtype == np.float64


@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_logits_come_from_the_format_of_the_images(dtype):
  images = np.array([[1.0], [0.5]]).astype(dtype)
  target = targets.linear([[1.0, -1.0]], [0.0, 0.0], images, [1, 1])
  assert target.logits(images).dtype == dtype
  # What the format cannot hold is rounded away before the function sees it.
  third = target.logits(np.full([1, 1], 1 / 3))[0, 0]
  assert third == np.asarray(1 / 3, dtype)


def test_answers_of_ties_and_of_what_is_no_number():
  images = np.array([[1.0], [0.0], [np.nan]])
  target = targets.linear([[-1.0, 1.0]], [1.0, 0.0], images, [1, 1, 1])
  assert target.answers(images).tolist() == [1, 0, -1]
