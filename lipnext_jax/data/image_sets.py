"""Opens image sets on disk by name: prepared official ones, and folders."""

from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple

from lipnext_jax import errors
from lipnext_jax.data import folder


class Splits(NamedTuple):
  """The two splits of a set; sources of uint8 [h, w, 3] and labels."""

  train: Any
  test: Any  # The labelled split that results are reported on.
  num_classes: int
  image_shape: tuple[int, int, int] | None  # None: it varies.


def open_set(name: str, data_dir: str) -> Splits:
  """Opens a set by its name in config.dataset.

  Args:
    name: a key of `official.SETS`, 'imagenet400' or 'folder'.
    data_dir: where sets lie; of 'folder', the folder with train/ and test/.

  Raises:
    ConfigError: it is not there.
    DataError: it is, but not as it should be.

  >>> open_set('cifar10', '/no/where')
  Traceback (most recent call last):
  lipnext_jax.errors.ConfigError: dataset.data_dir='/no/where' is no \
directory; give the one that prepared sets lie in.
  """
  if not os.path.isdir(data_dir):
    raise errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      'is no directory',
      'give the one that prepared sets lie in',
    )
  if name == 'folder':
    return _open_folder(data_dir)
  try:
    return _open_prepared(name, data_dir)
  except ImportError as error:
    raise errors.ConfigError(
      'dataset.name',
      name,
      f'needs a package that is not installed ({error.name})',
      "install it: pip install -c constraints.txt -e '.[data]'",
    ) from None


def _open_prepared(name: str, data_dir: str) -> Splits:
  # TensorFlow Datasets is an extra, slow to import, and of no use to folders.
  from lipnext_jax.data import imagenet400
  from lipnext_jax.data import official
  from lipnext_jax.data import records

  base = 'imagenet' if name == 'imagenet400' else name
  official_set = official.SETS[base]
  directory = _version_directory(base, official_set, data_dir)
  train = records.RecordSource(directory, 'train')
  test = records.RecordSource(directory, official_set.test_split)
  for source in (train, test):
    if source.num_classes != official_set.num_classes:
      raise errors.DataError(
        f'{directory}: has {source.num_classes} classes instead of '
        f'{official_set.num_classes}'
      )
  if name == 'imagenet400':
    return Splits(
      imagenet400.Subset(train),
      imagenet400.Subset(test),
      len(imagenet400.class_ids()),
      None,
    )
  return Splits(train, test, official_set.num_classes, official_set.image_shape)


def _version_directory(name: str, official_set: Any, data_dir: str) -> str:
  """Returns the folder of the newest version of a prepared set."""
  parent = os.path.join(data_dir, official_set.name)
  versions = []
  if os.path.isdir(parent):
    for entry in os.listdir(parent):
      parts = entry.split('.')
      if len(parts) == 3 and all(part.isdecimal() for part in parts):
        versions.append((tuple(map(int, parts)), entry))
  if not versions:
    unfinished = os.path.isdir(
      os.path.join(parent, f'incomplete.{official_set.version}')
    )
    raise errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      f'holds no {"finished " if unfinished else ""}{official_set.name}',
      f'prepare it: python -m lipnext_jax.data.prepare {name} --source=… '
      f'--data_dir={data_dir}',
    )
  return os.path.join(parent, max(versions)[1])


def _open_folder(data_dir: str) -> Splits:
  train = folder.find_split(data_dir, ('train',))
  test = folder.find_split(data_dir, ('test', 'val'))
  classes: Sequence[str] = folder.list_classes(train)
  return Splits(
    folder.FolderSource(train, list(classes)),
    folder.FolderSource(test, list(classes)),
    len(classes),
    None,
  )
