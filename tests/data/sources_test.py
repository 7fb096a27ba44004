import hashlib
import shutil
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest
import sklearn.datasets

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import hf
from lipnext_jax.data import prepare
from lipnext_jax.data import sources
from lipnext_jax.data import transforms
from lipnext_jax.data import views


def load(**fields):
  config = config_lib.default_config().dataset
  config.update_from_flattened_dict(fields)
  return sources.load_dataset(config)


def examples(source):
  """Returns (bytes of the image, label) of every example."""
  found = [source[i] for i in range(len(source))]
  return [(e['image'].tobytes(), int(e['label'])) for e in found]


def labels(source):
  return [label for _, label in examples(source)]


def test_digits_are_pixels_over_16_in_a_fixed_stratified_split():
  dataset, digits = load(), sklearn.datasets.load_digits()
  assert dataset.image_shape == dataset.train[0]['image'].shape == (8, 8, 1)
  train, test = examples(dataset.train), examples(dataset.test)
  pixels = (digits.images / 16).astype(np.float32)
  whole = zip([image.tobytes() for image in pixels], digits.target, strict=True)
  assert sorted(train + test) == sorted(whole)
  counts = [np.bincount(labels(s)) for s in (dataset.train, dataset.test)]
  assert [count.sum() for count in counts] == [1437, 360]
  shares = counts[0] / 1437 - counts[1] / 360
  assert np.abs(shares).max() < 1 / 360
  # The split does not move with scikit-learn's version.
  found = hashlib.sha256(bytes(labels(dataset.test))).hexdigest()
  assert found.startswith('70ee2850bb25b543')


def test_held_out_and_monitored_examples_are_fixed_training_examples():
  whole, dataset, again = load(), load(holdout=100), load(holdout=100)
  train, kept, held = map(
    examples, (whole.train, dataset.train, dataset.validation)
  )
  assert (len(kept), len(held)) == (1337, 100)
  assert sorted(kept + held) == sorted(train)
  assert held == examples(again.validation)
  with pytest.raises(errors.ConfigError, match=r'dataset\.holdout=1437'):
    load(holdout=1437)
  assert sources.monitor_split(dataset, 50) is dataset.validation
  first, second = (
    [*map(train.index, examples(sources.monitor_split(whole, 50)))]
    for _ in range(2)
  )
  # Distinct ones, all over the split: it may lie on disk sorted by class.
  assert len(first) == len({*first}) == 50
  assert min(first) < len(train) // 5
  assert max(first) > 4 * len(train) // 5
  assert first == second


def test_synthetic_images_are_a_function_of_the_seed_and_the_index():
  sizes = {'image_size': 6, 'channels': 2, 'num_classes': 3}
  sizes |= {'train_examples': 5, 'test_examples': 4}
  fields = {f'synthetic.{name}': value for name, value in sizes.items()}
  dataset, again = (load(name='synthetic', **fields) for _ in range(2))
  assert dataset.image_shape == dataset.train[0]['image'].shape == (6, 6, 2)
  assert dataset.train[0]['image'].dtype == np.uint8
  assert dataset.num_classes == 3
  assert labels(dataset.train) == [0, 1, 2, 0, 1]
  assert examples(dataset.train) == examples(again.train)
  assert len({*examples(dataset.train), *examples(dataset.test)}) == 5 + 4


def test_arrays_of_your_own_are_read_and_others_refused(tmp_path):
  fields = {'name': 'npz', 'data_dir': str(tmp_path)}
  images = np.random.default_rng(0).integers(256, size=(6, 4, 4, 3))
  images = images.astype(np.uint8)

  def write(name, images, labels):
    np.savez(tmp_path / name, image=images, label=labels)

  def refused(match):
    with pytest.raises(errors.ConfigError, match=match) as info:
      load(**fields)
    assert info.value.field == 'dataset.data_dir'

  refused('train.npz.* does not exist')
  write('train.npz', images, np.arange(6) % 3)
  write('test.npz', images / 255, np.arange(6))
  refused(r'test\.npz.* has float64\(6, 4, 4, 3\) as `image`')
  write('test.npz', images[:, 1:], np.arange(6))
  refused(r'train images of shape \(4, 4, 3\) but test images of \(3, 4, 3\)')
  write('test.npz', images[:2], np.array([2, 0]))
  # Beside a file, the folder of that name is left alone.
  (tmp_path / 'train').mkdir()
  dataset = load(**fields)
  assert (dataset.image_shape, dataset.num_classes) == ((4, 4, 3), 3)
  np.testing.assert_array_equal(dataset.train[5]['image'], images[5])
  assert dataset.test[0]['label'] == 2
  with zipfile.ZipFile(tmp_path / 'test.npz') as archive:
    archive.extractall(tmp_path / 'test')
  (tmp_path / 'test.npz').unlink()
  assert load(**fields).test[0]['label'] == 2


@pytest.fixture
def folder(tmp_path, make):
  """A folder per class with images of many sizes."""
  files = {
    f'{split}/{name}/{i}.png': make.encode(
      Image.fromarray(make.pixels(10 * number + i, 20 + i, 30 - i)), 'PNG'
    )
    for split in ('train', 'test')
    for number, name in enumerate(('cat', 'dog'))
    for i in range(4)
  }
  return make.tree(tmp_path, files)


def test_sets_of_varying_size_are_evaluated_at_one(folder, make):
  fields = {'name': 'folder', 'data_dir': folder}
  fields |= {'image_size': 16, 'resize': 18}
  dataset = load(**fields)
  assert (dataset.image_shape, dataset.num_classes) == ((16, 16, 3), 2)
  assert {dataset.train[i]['image'].shape for i in range(8)} == {
    (20 + i, 30 - i, 3) for i in range(4)
  }
  monitored = sources.monitor_split(dataset, 5)
  for source in (dataset.test, dataset.train_to_evaluate, monitored):
    assert {source[i]['image'].shape for i in range(5)} == {(16, 16, 3)}
  wanted = transforms.resize_center_crop(make.pixels(12, 22, 28), 18, 16)
  np.testing.assert_array_equal(dataset.test[6]['image'], wanted)
  assert dataset.test[6]['label'] == 1

  dataset = load(**fields, holdout=3)
  parts = (dataset.validation, dataset.train_to_evaluate)
  assert [len(part) for part in parts] == [3, 5]
  images = [part[i]['image'] for part in parts for i in range(len(part))]
  assert {image.shape for image in images} == {(16, 16, 3)}
  assert len({image.tobytes() for image in images}) == 8
  # 0: what ImageNet's networks see.
  dataset = load(**fields | {'image_size': 0})
  assert dataset.image_shape == (224, 224, 3)


def test_a_set_without_a_test_split_is_split_class_by_class(folder):
  fields = {'name': 'folder', 'data_dir': f'{folder}/train', 'image_size': 8}
  first, dataset = (
    load(**fields, test_share=0.25, split_seed=seed, holdout=3)
    for seed in (0, 1)
  )
  parts = (dataset.train, dataset.validation, dataset.test)
  names = [part.names() for part in parts]
  assert [*map(len, names)] == [3, 3, 2]
  assert len({*names[0], *names[1], *names[2]}) == 8
  assert [name[:3] for name in names[2]] == ['cat', 'dog']
  assert first.test.names() != names[2]
  assert 'dataset.test_share=0.25, dataset.split_seed=1' in dataset.notes[0]
  assert dataset.class_names == ('cat', 'dog')


def test_small_sets_are_kept_in_memory_where_one_process_reads(
  tmp_path, make, monkeypatch
):
  source = make.cifar(tmp_path)
  prepare.prepare('cifar10', source, str(tmp_path), allow_partial=True)

  def is_cached(workers=0):
    fields = {'name': 'cifar10', 'data_dir': str(tmp_path)}
    return isinstance(load(**fields, workers=workers).train, views.Cached)

  assert is_cached()
  assert not is_cached(workers=2)
  monkeypatch.setattr(sources, '_CACHE', 20 * 32 * 32 * 3 - 1)  # 20 images.
  assert not is_cached()


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory, make):
  """A folder with a small ImageNet."""
  folder = tmp_path_factory.mktemp('imagenet')
  source = make.imagenet(folder / 'tars', *make.imagenet_files()[:2])
  data_dir = str(folder / 'data')
  prepare.prepare('imagenet', source, data_dir, allow_partial=True)
  return data_dir


def test_imagenet_and_its_400_classes_in_the_newest_version(imagenet, tmp_path):
  whole, subset = (
    load(name=name, data_dir=imagenet) for name in ('imagenet', 'imagenet400')
  )
  assert labels(whole.train) == [0, 0, 0, 2, 2, 2, 999, 999, 999]
  assert labels(whole.test) == [999, 0, 2, 0]
  assert whole.num_classes == len(whole.class_names) == 1000
  assert subset.num_classes == len(subset.class_names) == 400
  names = tuple(whole.class_names[i] for i in (0, 2, 3))
  assert subset.class_names[:3] == names
  assert subset.train.names() == whole.train.names()[:6]
  assert labels(subset.train) == [0, 0, 0, 1, 1, 1]
  assert labels(subset.test) == [0, 1, 0]
  assert subset.test[0]['label'].dtype == np.int32
  parent = tmp_path / 'imagenet2012'
  shutil.copytree(f'{imagenet}/imagenet2012/5.1.0', parent / '5.10.0')
  (parent / '5.9.0').mkdir()  # Empty: reading it would fail.
  assert len(load(name='imagenet', data_dir=str(tmp_path)).train) == 9


def test_what_is_not_there_comes_with_the_command_that_makes_it(
  imagenet, tmp_path
):
  with pytest.raises(errors.ConfigError, match=r'prepare cifar10 --source'):
    load(name='cifar10', data_dir=imagenet)
  with pytest.raises(errors.ConfigError, match='is not a directory'):
    load(name='cifar10', data_dir=f'{imagenet}/no')
  (tmp_path / 'imagenet2012/incomplete.5.1.0').mkdir(parents=True)
  unfinished = r'holds no finished imagenet2012.*prepare imagenet'
  with pytest.raises(errors.ConfigError, match=unfinished):
    load(name='imagenet400', data_dir=str(tmp_path))
  # A set of other classes under the name.
  shutil.copytree(f'{imagenet}/imagenet2012', tmp_path / 'tiny_imagenet')
  with pytest.raises(errors.DataError, match='1000 classes instead of 200'):
    load(name='tiny_imagenet', data_dir=str(tmp_path))


def test_a_saved_dictionary_without_splits_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(hf, 'load', lambda path: {})
  with pytest.raises(errors.DataError, match='no split called train'):
    load(name='hf', data_dir=str(tmp_path))


def test_only_prepared_sets_need_tensorflow_datasets(run_command, tmp_path):
  code = """
import sys
sys.modules['tensorflow_datasets'] = None  # Its import fails.
from lipnext_jax import config, errors
from lipnext_jax.data import pipeline, sources
c = config.default_config().dataset
sources.load_dataset(c)
c.name, c.data_dir = 'cifar10', sys.argv[1]
try:
  sources.load_dataset(c)
except errors.ConfigError as error:
  print(error)
"""
  refused = run_command([sys.executable, '-c', code, str(tmp_path)]).stdout
  assert '(tensorflow_datasets)' in refused
  assert "pip install -c constraints.txt -e '.[data]'" in refused
