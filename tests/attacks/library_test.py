import sys

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.attacks import exact
from lipnext_jax.attacks import library


@pytest.mark.parametrize('name', library.ATTACKS)
def test_attacks_find_the_nearest_edge_where_it_is_known(exact_target, name):
  """The logits are linear: the nearest edge is at the certified radius."""
  ((found, points, settings),) = library.minimal(
    exact_target, (name,), steps=20, box=False
  )
  assert found == name
  assert settings == {'steps': 20, 'box': False}
  changed = exact_target.answers(points) != exact_target.predictions
  ratios = exact.distances(exact_target.images, points) / exact_target.radii
  assert np.mean(changed) > 0.8
  assert np.all(ratios[changed] > 1)
  # Twenty steps are few for the optimisers; DeepFool is exact on planes.
  assert np.median(ratios[changed]) < {'deepfool': 1.01}.get(name, 1.25)


def test_the_box_is_kept(exact_target):
  ((_, points, _),) = library.minimal(
    exact_target, ('deepfool',), steps=20, box=True
  )
  assert np.all((points >= 0) & (points <= 1))


def test_a_missing_library_is_one_line_with_a_remedy(exact_target, monkeypatch):
  monkeypatch.setitem(sys.modules, 'foolbox', None)
  with pytest.raises(errors.ConfigError, match=r"lipnext_jax\[attack\]'"):
    next(library.minimal(exact_target))
  assert not list(library.minimal(exact_target, ()))  # Nor is it needed then.
