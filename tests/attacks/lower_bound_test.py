import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax.attacks import lower_bound
from tests.attacks import targets


@pytest.mark.parametrize('scale', [0.5, 1.0, 1.001])
def test_the_constant_of_a_multiple_of_an_isometry_is_found(scale):
  params = targets.change('blocks/M', lambda m: scale * m)
  found = lower_bound.lipschitz_lower_bound(
    targets.MODEL, params, targets.IMAGES, restarts=9, steps=60
  )
  # Float32 matrices are orthogonal up to 1e-6.
  np.testing.assert_allclose(found.backbone, scale, rtol=1e-6)
  np.testing.assert_allclose(found.logits, scale, rtol=1e-3)
  assert found.logits <= found.backbone + lower_bound.ROUNDING
  # Below a proved bound; above an assumed 1, if that is wrong.
  proved = certify.lipschitz_bound(params)
  assert found.backbone <= proved + lower_bound.ROUNDING
  assert (found.backbone > 1 + 5e-4) == (scale > 1)
