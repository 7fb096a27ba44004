import os
import shutil

import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import image_sets
from lipnext_jax.data import prepare


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, formats):
  folder = tmp_path_factory.mktemp('imagenet')
  source = formats.imagenet(folder / 'tars', *formats.imagenet_files()[:2])
  prepare.prepare(
    prepare.Options(
      'imagenet', source, str(folder / 'data'), allow_partial=True
    )
  )
  return folder / 'data'


@pytest.fixture
def data_dir(prepared, tmp_path):
  return str(shutil.copytree(prepared, tmp_path / 'data'))


def open_set(name, data_dir, **fields):
  c = config_lib.default_config().dataset
  c.update(name=name, data_dir=data_dir, **fields)
  return image_sets.open_set(c)


def labels(source):
  return [int(source[i]['label']) for i in range(len(source))]


def test_imagenet_and_its_400_classes_in_the_newest_version(data_dir):
  whole = open_set('imagenet', data_dir)
  assert (len(whole.class_names), whole.image_shape) == (1000, None)
  assert labels(whole.train) == [0, 0, 0, 2, 2, 2, 999, 999, 999]
  assert labels(whole.test) == [999, 0, 2, 0]
  subset = open_set('imagenet400', data_dir)
  assert len(subset.class_names) == 400
  assert subset.class_names[:3] == [whole.class_names[i] for i in (0, 2, 3)]
  assert subset.train.names() == whole.train.names()[:6]
  assert labels(subset.train) == [0, 0, 0, 1, 1, 1]
  assert labels(subset.test) == [0, 1, 0]
  parent = os.path.join(data_dir, 'imagenet2012')
  os.rename(f'{parent}/5.1.0', f'{parent}/5.10.0')
  os.mkdir(f'{parent}/5.9.0')  # Empty: reading it would fail.
  assert len(open_set('imagenet', data_dir).train) == 9


def test_what_is_not_there_comes_with_the_command_that_makes_it(data_dir):
  with pytest.raises(errors.ConfigError, match=r'prepare cifar10 --source'):
    open_set('cifar10', data_dir)
  with pytest.raises(errors.ConfigError, match='is not a directory'):
    open_set('cifar10', data_dir + '/no')
  parent = os.path.join(data_dir, 'imagenet2012')
  os.rename(f'{parent}/5.1.0', f'{parent}/incomplete.5.1.0')
  unfinished = r'holds no finished imagenet2012.*prepare imagenet'
  with pytest.raises(errors.ConfigError, match=unfinished):
    open_set('imagenet400', data_dir)


def test_a_set_of_other_classes_is_refused(data_dir):
  os.rename(f'{data_dir}/imagenet2012', f'{data_dir}/tiny_imagenet')
  with pytest.raises(errors.DataError, match='1000 classes instead of 200'):
    open_set('tiny_imagenet', data_dir)
