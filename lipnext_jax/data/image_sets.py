"""Opens image sets on disk: official sets, folders, sets of TFDS and of HF."""

from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple

import ml_collections

from lipnext_jax import errors
from lipnext_jax.data import folder
from lipnext_jax.data import official


class Splits(NamedTuple):
  """The splits of a set: sources of uint8 images and labels."""

  train: Any
  test: Any  # None if the set has no test split.
  class_names: Sequence[str]  # By label.
  image_shape: tuple[int, int, int] | None  # None if it varies.
  channels: int = 3
  notes: tuple[str, ...] = ()  # See `sources.Dataset`.


def open_set(c: ml_collections.ConfigDict) -> Splits:
  """Opens the set of `config.dataset`.

  Raises:
    ConfigError: the set, or a package that reads it, is missing.
    DataError: the set is malformed.

  >>> from lipnext_jax import config
  >>> c = config.default_config().dataset
  >>> c.name, c.data_dir = 'cifar10', '/no/where'
  >>> open_set(c)
  Traceback (most recent call last):
  lipnext_jax.errors.ConfigError: dataset.data_dir='/no/where' is not a \
directory; give the one that prepared sets lie in.
  """
  data_dir = os.path.expanduser(c.data_dir)
  if not os.path.isdir(data_dir):
    what = {
      'folder': 'that holds train/CLASS/IMAGE and test/CLASS/IMAGE, or '
      'CLASS/IMAGE',
      'hf': 'that `save_to_disk` of Hugging Face datasets wrote',
    }.get(c.name, 'that prepared sets lie in')
    raise errors.ConfigError(
      'dataset.data_dir',
      c.data_dir,
      'is not a directory',
      f'give the one {what}',
    )
  if c.name == 'folder':
    train, test, classes, notes = folder.open_folder(data_dir, c.skip_bad)
    return Splits(train, test, classes, None, notes=notes)
  try:
    if c.name == 'hf':
      return _open_hf(data_dir)
    if c.name == 'tfds':
      return _open_tfds(data_dir, c.set_name)
    return _open_official(data_dir, c.name)
  except ImportError as error:
    extra = 'hf' if c.name == 'hf' else 'data'
    raise errors.ConfigError(
      'dataset.name',
      c.name,
      f'needs a package that is not installed ({error.name})',
      f'install it: {errors.install_command(extra)}',
    ) from None


def _find_test(data_dir: str, splits: Sequence[str]) -> str | None:
  """Returns the name of the test split, or None if there is none.

  Raises:
    DataError: the set has no split called 'train'.
  """
  if 'train' not in splits:
    raise errors.DataError(
      f'{data_dir}: has no split called train, only {", ".join(splits)}'
    )
  return next((name for name in folder.TEST_SPLITS if name in splits), None)


def _open_official(data_dir: str, name: str) -> Splits:
  """Opens an official set that `data.prepare` or TFDS wrote."""
  # These import TensorFlow Datasets, which is an extra, and slow to import.
  from lipnext_jax.data import imagenet400
  from lipnext_jax.data import records

  base = 'imagenet' if name == 'imagenet400' else name
  official_set = official.SETS[base]
  directory = _newest_version(
    data_dir,
    official_set.name,
    f'prepare it: python -m lipnext_jax.data.prepare {base} --source=… '
    f'--data_dir={data_dir}, with the files of '
    f'{official_set.origin or official_set.homepage}',
  )
  train = records.RecordSource(directory, 'train')
  test = records.RecordSource(directory, official_set.test_split)
  for source in (train, test):
    if source.num_classes != official_set.num_classes:
      raise errors.DataError(
        f'{directory}: has {source.num_classes} classes instead of '
        f'{official_set.num_classes}'
      )
  if name == 'imagenet400':
    names = [train.class_names[i] for i in imagenet400.class_ids()]
    return Splits(
      imagenet400.select(train), imagenet400.select(test), names, None
    )
  return Splits(train, test, train.class_names, official_set.image_shape)


def _open_tfds(data_dir: str, name: str) -> Splits:
  """Opens a set that TFDS prepared as ArrayRecord files."""
  from lipnext_jax.data import records

  if not name:
    raise errors.ConfigError(
      'dataset.set_name',
      name,
      'is missing',
      "name the set, e.g. 'mnist' or 'imagenette/160px-v2'",
    )
  directory = _newest_version(
    data_dir,
    name,
    "prepare it with TFDS and file_format='array_record', or name another "
    'dataset.set_name',
  )
  train = records.RecordSource(directory, 'train')
  split = _find_test(directory, train.splits)
  test = records.RecordSource(directory, split) if split else None
  shape = None if None in train.shape else train.shape
  return Splits(train, test, train.class_names, shape, train.shape[2])


def _open_hf(data_dir: str) -> Splits:
  """Opens a folder that `save_to_disk` of a Dataset or DatasetDict wrote."""
  from lipnext_jax.data import hf

  splits = hf.list_splits(data_dir)
  test = _find_test(data_dir, splits) if splits else None
  train = hf.HfSource(data_dir, 'train' if splits else '')
  return Splits(
    train,
    hf.HfSource(data_dir, test) if test else None,
    train.class_names,
    train.find_shape(),
  )


def _newest_version(data_dir: str, name: str, remedy: str) -> str:
  """Returns the folder of the newest version of a prepared set."""
  import tensorflow_datasets as tfds

  parent, version = os.path.join(data_dir, name), tfds.core.Version
  entries = os.listdir(parent) if os.path.isdir(parent) else []
  versions = [version(entry) for entry in entries if version.is_valid(entry)]
  if not versions:
    unfinished = any(entry.startswith('incomplete.') for entry in entries)
    raise errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      f'holds no {"finished " if unfinished else ""}{name}',
      remedy,
    )
  return os.path.join(parent, str(max(versions)))
