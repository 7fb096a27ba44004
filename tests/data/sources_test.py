import hashlib
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import sklearn.datasets

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import hf
from lipnext_jax.data import images
from lipnext_jax.data import prepare
from lipnext_jax.data import sources
from lipnext_jax.data import transforms
from lipnext_jax.data import views


def load(**fields):
  config = config_lib.default_config().dataset
  config.update(fields)
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
  # The split is stratified, and does not move with scikit-learn's version.
  found = hashlib.sha256(bytes(labels(dataset.test))).hexdigest()
  assert found.startswith('70ee2850bb25b543')


def test_held_out_and_monitored_examples_are_fixed_training_examples():
  whole, dataset, again = load(), load(holdout=100), load(holdout=100)
  parts = (whole.train, dataset.train, dataset.validation)
  train, kept, held = map(examples, parts)
  assert (len(kept), len(held)) == (1337, 100)
  assert sorted(kept + held) == sorted(train)
  assert held == examples(again.validation)
  with pytest.raises(errors.ConfigError, match=r'dataset\.holdout=1437'):
    load(holdout=1437)
  assert sources.monitor_split(dataset, 50) is dataset.validation
  monitored = [examples(sources.monitor_split(whole, 50)) for _ in range(2)]
  assert monitored[0] == monitored[1]
  # Distinct ones, all over the split: it may lie on disk sorted by class.
  places = [*map(train.index, monitored[0])]
  assert len(places) == len({*places}) == 50
  assert min(places) < len(train) // 5
  assert max(places) > 4 * len(train) // 5


def test_synthetic_images_are_a_function_of_the_seed_and_the_index():
  sizes = {'image_size': 6, 'channels': 2, 'num_classes': 3}
  sizes |= {'train_examples': 5, 'test_examples': 4}
  dataset, again = (load(name='synthetic', synthetic=sizes) for _ in range(2))
  assert dataset.image_shape == dataset.train[0]['image'].shape == (6, 6, 2)
  assert dataset.train[0]['image'].dtype == np.uint8
  assert dataset.num_classes == 3
  assert labels(dataset.train) == [0, 1, 2, 0, 1]
  assert examples(dataset.train) == examples(again.train)
  assert len({*examples(dataset.train), *examples(dataset.test)}) == 5 + 4


def test_arrays_of_your_own_are_read_and_others_refused(tmp_path):
  fields = {'name': 'npz', 'data_dir': str(tmp_path)}
  pixels = np.arange(288).astype(np.uint8).reshape(6, 4, 4, 3)
  missing = r'^dataset\.data_dir=.*train\.npz.* does not exist'
  with pytest.raises(errors.ConfigError, match=missing):
    load(**fields)
  np.savez(tmp_path / 'train', image=pixels, label=np.arange(6) % 3)
  np.savez(tmp_path / 'test', image=pixels[:, 1:], label=np.arange(6))
  shapes = r'^dataset\.data_dir=.*\(4, 4, 3\) but test images of \(3, 4, 3\)'
  with pytest.raises(errors.ConfigError, match=shapes):
    load(**fields)
  np.savez(tmp_path / 'test', image=pixels[:2], label=np.array([2, 0]))
  # Beside a file, the folder of that name is left alone.
  (tmp_path / 'train').mkdir()
  dataset = load(**fields)
  assert (dataset.image_shape, dataset.num_classes) == ((4, 4, 3), 3)
  np.testing.assert_array_equal(dataset.train[5]['image'], pixels[5])
  assert dataset.test[0]['label'] == 2
  with zipfile.ZipFile(tmp_path / 'test.npz') as archive:
    archive.extractall(tmp_path / 'test')
  (tmp_path / 'test.npz').unlink()
  assert load(**fields).test[0]['label'] == 2


@pytest.fixture
def folder(tmp_path, make):
  """A folder per class with images of many sizes."""
  files = {
    f'{split}/{name}/{i}.png': images.encode_png(
      make.pixels(10 * number + i, 20 + i, 30 - i)
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
  assert (len(dataset.validation), len(dataset.train_to_evaluate)) == (3, 5)
  assert dataset.validation[0]['image'].shape == (16, 16, 3)
  # 0: what ImageNet's networks see.
  assert load(**fields | {'image_size': 0}).image_shape == (224, 224, 3)


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


def test_small_sets_are_kept_in_memory_where_one_process_reads(
  tmp_path, make, monkeypatch
):
  source = make.cifar(tmp_path)
  prepare.prepare('cifar10', source, str(tmp_path), allow_partial=True)
  fields = {'name': 'cifar10', 'data_dir': str(tmp_path)}
  assert isinstance(load(**fields).train, views.Cached)
  assert not isinstance(load(**fields, workers=2).train, views.Cached)
  monkeypatch.setattr(sources, '_CACHE', 20 * 32 * 32 * 3 - 1)  # 20 images.
  assert not isinstance(load(**fields).train, views.Cached)


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


def test_a_saved_dictionary_without_splits_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(hf, 'load', lambda path: {})
  with pytest.raises(errors.DataError, match='no split called train'):
    load(name='hf', data_dir=str(tmp_path))


def test_sets_that_need_an_extra_name_it(run_command, tmp_path):
  code = """
import sys
sys.modules['datasets'] = sys.modules['tensorflow_datasets'] = None  # Missing.
from lipnext_jax import config, errors
from lipnext_jax.data import pipeline, sources
for name in ('digits', 'hf', 'cifar10'):
  c = config.default_config().dataset
  c.name, c.data_dir = name, sys.argv[1]
  try:
    print(len(sources.load_dataset(c).train))
  except errors.ConfigError as error:
    print(error)
"""
  done = run_command([sys.executable, '-c', code, str(tmp_path)])
  digits, hf_set, prepared = done.stdout.splitlines()
  assert digits == '1437'
  assert re.search(r"\(datasets\).* -c constraints.txt -e '\.\[hf\]'", hf_set)
  assert re.search(r"\(tensorflow_datasets\).* -e '\.\[data\]'", prepared)
