import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import mixture
from lipnext_jax.data import sources
from lipnext_jax.data import views

IMAGES = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3))
IMAGES = IMAGES.astype(np.uint8)
LABELS = np.arange(6) % 3


def load(path, images=None, labels=LABELS, **fields):
  """What is mixed into images of 8×8 pixels and 3 classes."""
  if images is not None:
    np.savez(path, image=images, label=labels)
  config = config_lib.default_config()
  config.dataset.extra_npz = str(path)
  config.dataset.extra_ratio = 3
  config.update_from_flattened_dict(fields)
  source = views.ArraySource(IMAGES, LABELS)
  dataset = sources.Dataset((8, 8, 3), 3, source, source)
  return mixture.load_extra(config, dataset)


def test_examples_are_those_of_the_file(tmp_path):
  extra = load(tmp_path / 'extra.npz', IMAGES)
  assert (extra.ratio, len(extra.source)) == (3, 6)
  np.testing.assert_array_equal(extra.source[5]['image'], IMAGES[5])
  assert load('/no/where.npz', **{'dataset.extra_ratio': 0}) is None


BAD = {
  'float images': (IMAGES / 255, LABELS, 'float64'),
  'other channels': (IMAGES[..., :1], LABELS, '8, 8, 1'),
  'other sizes': (IMAGES[:, 1:], LABELS, '7, 8, 3'),
  'other classes': (IMAGES, LABELS + 1, 'up to 3; the 3 classes'),
  'no file': (None, LABELS, 'does not exist'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_does_not_fit_the_real_images_is_refused(tmp_path, case):
  images, labels, reason = BAD[case]
  with pytest.raises(errors.ConfigError, match=reason) as info:
    load(tmp_path / 'extra.npz', images, labels)
  assert info.value.field == 'dataset.extra_npz'


def test_images_of_another_size_need_the_resize_of_the_real_ones(tmp_path):
  large = np.zeros((6, 12, 12, 3), np.uint8)
  path, resize = (
    tmp_path / 'extra.npz',
    {'augment.resize.min': 8, 'augment.resize.max': 9},
  )
  assert len(load(path, large, **resize).source) == 6
  with pytest.raises(errors.ConfigError, match='12, 12, 3'):
    load(path, large, **resize, **{'augment.extra.as_real': False})
