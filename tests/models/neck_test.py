"""Ends of LipNeXt: what a neck keeps and pooling drops.

That they are 1-Lipschitz is in `interface_test`, their rounding in
`certify/rounding_test`, and their function in `certify/rigorous_test`.
"""

import jax
import numpy as np
import pytest

from lipnext_jax import models
from tests import networks


@pytest.mark.parametrize(('pool', 'sees'), [('l2', False), ('neck', True)])
def test_a_neck_sees_places_and_signs_and_pooling_does_not(pool, sees):
  """On a grid without edges, moved images have moved tokens."""
  model = models.LipNeXt(
    4, depth=3, width=16, patch_size=2, pool=pool, neck_width=12, beta=0.0
  )
  x = np.random.default_rng(7).uniform(size=(3, 8, 12, 3)).astype(np.float32)
  params = networks.draw(model, x.shape[1:], scale=0.3)
  params['blocks']['pos'] *= 0
  forward = jax.jit(model.apply)
  still = forward({'params': params}, x)
  moved = forward({'params': params}, np.roll(x, 2, axis=1))
  assert (np.max(np.abs(moved - still)) > 1e-3) == sees
  last = params['blocks'] | {
    leaf: params['blocks'][leaf] * np.float32([1, 1, -1]).reshape(shape)
    for leaf, shape in (('M', (3, 1, 1)), ('bias', (3, 1)))
  }
  flipped = forward({'params': params | {'blocks': last}}, x)
  assert (np.max(np.abs(flipped - still)) > 1e-3) == sees
