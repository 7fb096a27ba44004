import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from lipnext_jax import certify
from lipnext_jax.attacks import target as target_lib


def test_fast_targets_are_the_rigorous_ones_but_for_rounding(
  isometry, exact_target
):
  low = isometry.model.clone(dtype=jnp.bfloat16)  # However it was trained.
  target = target_lib.certified_target(
    'fast', low, isometry.params, isometry.images, batch_size=5
  )
  np.testing.assert_array_equal(target.predictions, exact_target.predictions)
  # Logits are differences of numbers of size 12: rounding of 1e-6 each.
  constants = certify.prove_constants(isometry.params)
  floor = np.max(certify.margin_floor(isometry.images, constants))
  apart = pdist(isometry.params['head']['kernel'])
  lost = exact_target.radii - target.radii
  assert np.all(lost > floor / 2 / np.max(apart))
  assert np.all(lost < floor / np.min(apart) + 1e-5)
  assert not target.closed
  assert target.images.dtype == target.logits(target.images).dtype
  assert target.images.dtype == np.float32
  assert target.lipschitz == certify.lipschitz_bound(isometry.params)


def test_rigorous_targets_hold_what_the_certifier_says(
  isometry, make_target, exact_target
):
  found = certify.rigorous_radius(
    isometry.model, isometry.params, isometry.images
  )
  for target in (exact_target, make_target(batch_size=5)):
    np.testing.assert_array_equal(target.predictions, found.predictions)
    np.testing.assert_allclose(target.radii, found.radii, rtol=1e-12)
    assert target.closed
    assert target.images.dtype == target.logits(target.images).dtype
    assert target.images.dtype == np.float64


@pytest.mark.parametrize(
  'dtype', [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
)
def test_logits_come_from_the_format_of_the_images(make_linear, dtype):
  images = np.array([[1.0], [0.5]]).astype(dtype)
  target = make_linear([[1.0, -1.0]], [0.0, 0.0], images, [1, 1])
  assert target.logits(images).dtype == dtype
  # What the format cannot hold is rounded away before the function sees it.
  third = target.logits(np.full([1, 1], 1 / 3))[0, 0]
  assert third == np.asarray(1 / 3, dtype)


def test_answers_of_ties_and_of_what_is_no_number(make_linear):
  images = np.array([[1.0], [0.0], [np.nan]])
  target = make_linear([[-1.0, 1.0]], [0.0, 0.0], images, [1, 1, 1])
  assert target.answers(images).tolist() == [1, 0, -1]
