"""CIFAR-10 and CIFAR-100 from their official Python archives."""

import os
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts
from lipnext_jax.data.formats import restricted_pickle

_PIXELS = 3 * 32 * 32  # Of a row: all red ones, then green, then blue.


class _Layout(NamedTuple):
  """How one of the two archives is laid out."""

  archive: str
  folder: str  # What it extracts to.
  meta: str  # File with the names of the classes.
  batches: dict[str, tuple[str, ...]]  # Split → files.
  labels: dict[str, tuple[str, str]]  # Feature → keys in a batch, in `meta`.
  names: dict[str, list[str]]  # Feature → the official names.


_CIFAR10 = _Layout(
  archive='cifar-10-python.tar.gz',
  folder='cifar-10-batches-py',
  meta='batches.meta',
  batches={
    'train': tuple(f'data_batch_{i}' for i in range(1, 6)),
    'test': ('test_batch',),
  },
  labels={'label': ('labels', 'label_names')},
  names={'label': official.class_names('cifar10')},
)
_CIFAR100 = _Layout(
  archive='cifar-100-python.tar.gz',
  folder='cifar-100-python',
  meta='meta',
  batches={'train': ('train',), 'test': ('test',)},
  labels={
    'label': ('fine_labels', 'fine_label_names'),
    'coarse_label': ('coarse_labels', 'coarse_label_names'),
  },
  names={
    'label': official.class_names('cifar100'),
    'coarse_label': official.class_names('cifar100_coarse'),
  },
)


def read_cifar10(source: str, *, allow_partial: bool) -> layouts.Contents:
  """cifar-10-python.tar.gz, or the folder cifar-10-batches-py.

  Raises:
    DataError: naming the archive and the batch that is malformed.

  >>> read_cifar10('/no/where', allow_partial=False)
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/no/where: does not exist
  """
  del allow_partial  # Only the counts tell, which are checked for all sets.
  return _read(source, _CIFAR10)


def read_cifar100(source: str, *, allow_partial: bool) -> layouts.Contents:
  """cifar-100-python.tar.gz, or the folder cifar-100-python.

  Raises:
    DataError: naming the archive and the batch that is malformed.

  >>> read_cifar100('/no/where', allow_partial=False)
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/no/where: does not exist
  """
  del allow_partial  # Only the counts tell, which are checked for all sets.
  return _read(source, _CIFAR100)


def _read(source: str, layout: _Layout) -> layouts.Contents:
  path = layouts.find(source, (layout.archive, layout.folder))
  if path is None:
    raise layouts.not_found(
      source, layout.archive, f'the folder {layout.folder}'
    )
  files = _read_files(path, layout)
  facts = _load(path, layout.meta, files)
  for feature, (_, key) in layout.labels.items():
    wanted = layout.names[feature]
    if _list(facts, key) not in (wanted, [name.encode() for name in wanted]):
      raise errors.DataError(
        f'{path}, {layout.meta}: {key} is not the official list of classes'
      )
  splits = {}
  for split, names in layout.batches.items():
    items: list[layouts.Item] = []
    for name in names:
      batch = _load(path, name, files)
      items += _items(batch, f'{path}, {name}', split, len(items), layout)
    splits[split] = items
  return layouts.Contents(layout.names, splits)


def _read_files(path: str, layout: _Layout) -> dict[str, bytes]:
  names = [name for batch in layout.batches.values() for name in batch]
  wanted = frozenset([layout.meta, *names])
  if not os.path.isdir(path):
    return archives.read_tar_gz(path, wanted)
  entries = archives.list_folder(path)
  return {e.name: archives.read(e) for e in entries if e.name in wanted}


def _load(path: str, name: str, files: dict[str, bytes]) -> dict[str, Any]:
  if name not in files:
    raise errors.DataError(f'{path}: holds no {name}')
  try:
    return restricted_pickle.loads(files[name])
  except restricted_pickle.RefusedError as error:
    raise errors.DataError(f'{path}, {name}: {error}') from None


def _items(batch, where, split, first, layout) -> list[layouts.Item]:
  data = batch.get('data')
  if not isinstance(data, np.ndarray) or data.shape[1:] != (_PIXELS,):
    raise errors.DataError(f'{where}: `data` is no uint8 [n, {_PIXELS}]')
  columns = {}
  for feature, (key, _) in layout.labels.items():
    column = _list(batch, key)
    if len(column) != len(data) or not all(type(v) is int for v in column):
      raise errors.DataError(f'{where}: `{key}` is no list of {len(data)} ints')
    columns[feature] = column
  return [
    layouts.Item(
      key=f'{split}_{first + i:05d}',  # As TFDS numbers them.
      labels={feature: column[i] for feature, column in columns.items()},
      content=pixels.tobytes(),
    )
    for i, pixels in enumerate(data)
  ]


def _list(batch: dict[str, Any], key: str) -> list[Any]:
  value = batch.get(key)
  return value if isinstance(value, list) else []
