import pickle

import numpy as np
from PIL import Image
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import sources


def load(path, **fields):
  c = config_lib.default_config().dataset
  c.update(name='hf', data_dir=str(path), **fields)
  return sources.load_dataset(c)


def test_a_saved_set_has_its_own_classes_sizes_and_splits(tmp_path, make):
  datasets = pytest.importorskip('datasets', reason="the extra 'hf'")
  animal = datasets.ClassLabel(names=['cat', 'dog'])
  features = datasets.Features(picture=datasets.Image(), animal=animal)
  pixels = [make.pixels(i, 12, 12) for i in range(10)]
  rows = {'picture': [*map(Image.fromarray, pixels)], 'animal': 5 * [0, 1]}
  whole = datasets.Dataset.from_dict(rows, features=features)
  whole.save_to_disk(tmp_path / 'one')
  two = datasets.DatasetDict(train=whole, test=whole.select(range(3)))
  two.save_to_disk(tmp_path / 'two')

  dataset = load(tmp_path / 'two')
  assert dataset.class_names == ('cat', 'dog')
  assert (dataset.image_shape, dataset.resize) == ((12, 12, 3), 0)
  assert (len(dataset.train), len(dataset.test)) == (10, 3)
  for i in range(3):
    np.testing.assert_array_equal(dataset.test[i]['image'], pixels[i])
    assert dataset.test[i]['label'] == i % 2
  pickled = pickle.dumps(dataset.train)
  assert len(pickled) < whole.data.nbytes  # Workers get paths, not images.
  again = pickle.loads(pickled)
  np.testing.assert_array_equal(again[9]['image'], pixels[9])
  assert sum(1 for _ in dataset.train) == 10

  dataset = load(tmp_path / 'one', image_size=8)
  assert (len(dataset.train), len(dataset.test)) == (8, 2)
  assert dataset.test[1]['image'].shape == (8, 8, 3)
  with pytest.raises(errors.DataError, match='cannot be read'):
    load(tmp_path)
  whole.remove_columns('animal').save_to_disk(tmp_path / 'three')
  with pytest.raises(errors.DataError, match='0 features of type ClassLabel'):
    load(tmp_path / 'three')
