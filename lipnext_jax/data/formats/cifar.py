"""Reads CIFAR-10 and CIFAR-100 from their Python or binary archives."""

import io
import os
import pickle
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

_PIXELS = 3 * 32 * 32  # Values of an image: red, then green, then blue.


class _Label(NamedTuple):
  """The keys and files of a label and of the names of its classes."""

  prefix: str  # Prefix of the keys `labels` and `label_names` in pickles.
  names_file: str  # File of the names in the binary archive.
  names: list[str]  # The official names.


class _Layout(NamedTuple):
  """The files of the two archives of a set."""

  python: tuple[str, str]  # The archive of pickles, and its extracted folder.
  binary: tuple[str, str]  # The archive of bytes, and its extracted folder.
  batches: dict[str, tuple[str, ...]]  # Split → files; binary ones end in .bin.
  meta: str  # The pickle with the names of the classes.
  labels: dict[str, _Label]  # By feature, in the order of the binary records.


_LAYOUTS = {
  'cifar10': _Layout(
    python=('cifar-10-python.tar.gz', 'cifar-10-batches-py'),
    binary=('cifar-10-binary.tar.gz', 'cifar-10-batches-bin'),
    batches={
      'train': tuple(f'data_batch_{i}' for i in range(1, 6)),
      'test': ('test_batch',),
    },
    meta='batches.meta',
    labels={
      'label': _Label('', 'batches.meta.txt', official.class_names('cifar10'))
    },
  ),
  'cifar100': _Layout(
    python=('cifar-100-python.tar.gz', 'cifar-100-python'),
    binary=('cifar-100-binary.tar.gz', 'cifar-100-binary'),
    batches={'train': ('train',), 'test': ('test',)},
    meta='meta',
    labels={
      'coarse_label': _Label(
        'coarse_',
        'coarse_label_names.txt',
        official.class_names('cifar100_coarse'),
      ),
      'label': _Label(
        'fine_', 'fine_label_names.txt', official.class_names('cifar100')
      ),
    },
  ),
}


def read_cifar(
  name: str, source: str, *, allow_partial: bool
) -> layouts.Contents:
  """Reads one of the archives, or an extracted folder.

  Raises:
    DataError: a file is missing or malformed.

  >>> read_cifar('cifar10', '/no/where', allow_partial=False)
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/no/where: does not exist
  """
  layout = _LAYOUTS[name]
  path = layouts.find(source, (*layout.python, *layout.binary))
  if path is None:
    raise layouts.not_found(
      source,
      f'{layout.python[0]}, {layout.binary[0]}',
      f'the folder {layout.python[1]}',
    )
  archives.verify(path, allow_partial=allow_partial)
  binary = os.path.basename(path) in layout.binary
  suffix, parse = ('.bin', _parse_binary) if binary else ('', _parse_pickle)
  files = _read_files(path, layout, suffix)
  _check_names(path, layout, files, binary)
  splits = {}
  for split, batches in layout.batches.items():
    items: list[layouts.Item] = []
    for name in batches:
      where, data = f'{path}, {name}{suffix}', files[name + suffix]
      pixels, labels = parse(where, data, layout.labels)
      for i, image in enumerate(pixels):
        key = f'{split}_{len(items):05d}'  # The same as in TFDS.
        of_image = {feature: column[i] for feature, column in labels.items()}
        items.append(layouts.Item(key, of_image, image.tobytes()))
    splits[split] = items
  names = {feature: label.names for feature, label in layout.labels.items()}
  return layouts.Contents(names, splits)


def _read_files(path: str, layout: _Layout, suffix: str) -> dict[str, bytes]:
  """Reads the files of the batches and of the names of the classes."""
  wanted = {
    name + suffix for batch in layout.batches.values() for name in batch
  }
  if suffix:
    wanted |= {label.names_file for label in layout.labels.values()}
  else:
    wanted.add(layout.meta)
  if os.path.isdir(path):
    entries = archives.list_folder(path)
    files = {e.name: archives.read(e) for e in entries if e.name in wanted}
  else:
    files = archives.read_tar_gz(path, frozenset(wanted))
  for name in sorted(wanted - set(files)):
    raise errors.DataError(f'{path}: holds no {name}')
  return files


def _check_names(
  path: str, layout: _Layout, files: dict[str, bytes], binary: bool
) -> None:
  """Checks that the classes are the official ones, in their order."""
  for label in layout.labels.values():
    name = label.names_file if binary else layout.meta
    key = f'{label.prefix}label_names'
    found: Any = files[name].split()
    if not binary:
      found = _load(f'{path}, {name}', files[name]).get(key)
    if found not in (label.names, [word.encode() for word in label.names]):
      raise errors.DataError(
        f'{path}, {name}: {key} is not the official list of classes'
      )


def _parse_pickle(
  where: str, data: bytes, labels: dict[str, _Label]
) -> tuple[np.ndarray, dict[str, list[int]]]:
  """Returns the pixels [n, 3072] of a batch, and its labels by feature."""
  batch = _load(where, data)
  pixels = batch.get('data')
  if (
    not isinstance(pixels, np.ndarray)
    or pixels.dtype != np.uint8
    or pixels.shape[1:] != (_PIXELS,)
  ):
    raise errors.DataError(f'{where}: `data` is not uint8 [n, {_PIXELS}]')
  columns = {}
  for feature, label in labels.items():
    key = f'{label.prefix}labels'
    column = batch.get(key)
    if (
      not isinstance(column, list)
      or len(column) != len(pixels)
      or not all(type(value) is int for value in column)
    ):
      raise errors.DataError(
        f'{where}: `{key}` is not a list of {len(pixels)} ints'
      )
    columns[feature] = column
  return pixels, columns


def _parse_binary(
  where: str, data: bytes, labels: dict[str, _Label]
) -> tuple[np.ndarray, dict[str, list[int]]]:
  """Parses a binary batch, whose records are labels followed by pixels."""
  record = np.dtype(
    [*((feature, 'u1') for feature in labels), ('pixels', 'u1', _PIXELS)]
  )
  if len(data) % record.itemsize:
    raise errors.DataError(
      f'{where}: has {len(data)} bytes, no multiple of {record.itemsize}'
    )
  rows = np.frombuffer(data, record)
  return rows['pixels'], {name: rows[name].tolist() for name in labels}


# The functions that rebuild NumPy arrays, under the names of several versions.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', '_reconstruct'): _RECONSTRUCT,
  ('numpy._core.multiarray', '_reconstruct'): _RECONSTRUCT,
}


class _Unpickler(pickle.Unpickler):
  """Unpickles arrays in plain containers, and refuses all other code."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns a function that rebuilds arrays, or raises."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'asks for {module}.{name}, not allowed')
    return _ALLOWED[module, name]


def _load(where: str, data: bytes) -> dict[str, Any]:
  """Unpickles a dict, and decodes its keys."""
  try:
    value = _Unpickler(io.BytesIO(data), encoding='bytes').load()
    return {
      key.decode() if isinstance(key, bytes) else key: item
      for key, item in value.items()
    }
  except Exception as error:  # A malformed pickle raises any error.
    reason = ' '.join(str(error).split())[:200]
    raise errors.DataError(f'{where}: is malformed ({reason})') from None
