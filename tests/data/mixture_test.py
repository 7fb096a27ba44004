import pickle

import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import mixture
from lipnext_jax.data import sources


def make_arrays(count=6, size=8, channels=3):
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(count, size, size, channels))
  return images.astype(np.uint8), np.arange(count) % 3


def load(path, **fields):
  config = config_lib.default_config()
  config.dataset.extra_npz = str(path)
  config.dataset.extra_ratio = 3
  config.update_from_flattened_dict(fields)
  images, labels = make_arrays()
  source = sources.ArraySource(images, labels)
  dataset = sources.Dataset((8, 8, 3), 3, source, None, source)
  return mixture.load_extra(config, dataset)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_examples_are_those_of_the_file(tmp_path, save):
  images, labels = make_arrays()
  save(tmp_path / 'extra.npz', image=images, label=labels)
  extra = load(tmp_path / 'extra.npz')
  assert extra.ratio == 3
  assert len(extra.source) == 6
  for copy in (extra.source, pickle.loads(pickle.dumps(extra.source))):
    for i in range(6):
      np.testing.assert_array_equal(copy[i]['image'], images[i])
      assert copy[i]['label'] == labels[i]
      assert copy[i]['label'].dtype == np.int32


def test_an_uncompressed_file_is_mapped_and_pickled_by_its_path(tmp_path):
  images, labels = make_arrays(count=500)
  order = np.asfortranarray(images)
  for name, array in (('c', images), ('f', order)):
    np.savez(
      tmp_path / f'{name}.npz', other=np.ones(3), image=array, label=labels
    )
    mapped = mixture.map_member(str(tmp_path / f'{name}.npz'), 'image')
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, images)
  source = mixture.NpzSource(str(tmp_path / 'c.npz'))
  assert len(pickle.dumps(source)) < 1000
  np.savez_compressed(tmp_path / 'small.npz', image=images, label=labels)
  unpacked = mixture.map_member(str(tmp_path / 'small.npz'), 'image')
  assert not isinstance(unpacked, np.memmap)


def test_without_a_ratio_nothing_is_read():
  assert load('/no/where.npz', **{'dataset.extra_ratio': 0}) is None


IMAGES, LABELS = make_arrays()
BAD = {
  'float images': ({'image': IMAGES / 255, 'label': LABELS}, 'float64'),
  'no images': ({'label': LABELS}, 'image'),
  'no labels': ({'image': IMAGES}, 'label'),
  'too few labels': ({'image': IMAGES, 'label': LABELS[1:]}, '`label`'),
  'float labels': ({'image': IMAGES, 'label': LABELS / 1}, '`label`'),
  'other channels': ({'image': IMAGES[..., :1], 'label': LABELS}, '8, 8, 1'),
  'other sizes': ({'image': IMAGES[:, 1:], 'label': LABELS}, '7, 8, 3'),
  'other classes': ({'image': IMAGES, 'label': LABELS + 1}, '3 classes'),
  'negative labels': ({'image': IMAGES, 'label': LABELS - 1}, 'from -1 to'),
  'no examples': ({'image': IMAGES[:0], 'label': LABELS[:0]}, '`image`'),
  'pickles': ({'image': np.array([{}]), 'label': LABELS[:1]}, 'pickled'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, case):
  arrays, reason = BAD[case]
  np.savez(tmp_path / 'extra.npz', **arrays)
  with pytest.raises(errors.ConfigError) as info:
    load(tmp_path / 'extra.npz')
  assert info.value.field == 'dataset.extra_npz'
  assert reason in str(info.value)
  assert '\n' not in str(info.value)


def test_a_missing_or_cut_file_is_refused(tmp_path):
  path = tmp_path / 'extra.npz'
  with pytest.raises(errors.ConfigError, match='is no file'):
    load(path)
  np.savez(path, image=IMAGES, label=LABELS)
  whole = path.read_bytes()
  for cut in (0, 10, len(whole) // 2, len(whole) - 5):
    path.write_bytes(whole[:cut])
    with pytest.raises(errors.ConfigError, match='cannot be read'):
      load(path)


def test_images_of_another_size_need_the_resize_of_the_real_ones(tmp_path):
  images, labels = make_arrays(size=12)
  np.savez(tmp_path / 'extra.npz', image=images, label=labels)
  resize = {'augment.resize.min': 8, 'augment.resize.max': 9}
  assert len(load(tmp_path / 'extra.npz', **resize).source) == 6
  with pytest.raises(errors.ConfigError, match='12, 12, 3'):
    load(tmp_path / 'extra.npz', **resize, **{'augment.extra.as_real': False})
