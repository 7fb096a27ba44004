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

_PIXELS = 3 * 32 * 32  # Values of an image: red, then green, then blue.


class _Layout(NamedTuple):
  """The files of the two archives of a set."""

  python: tuple[str, str]  # The archive of pickles, and its extracted folder.
  binary: tuple[str, str]  # The archive of bytes, and its extracted folder.
  batches: dict[str, tuple[str, ...]]  # Split → files; binary ones end in .bin.
  meta: str  # The pickle with the names of the classes.
  names_file: str  # File of the names in the binary archive, after a prefix.
  prefixes: dict[str, str]  # Label feature → prefix, in the binary order.
  class_names: dict[str, list[str]]  # Label feature → official names.


_LAYOUTS = {
  'cifar10': _Layout(
    python=('cifar-10-python.tar.gz', 'cifar-10-batches-py'),
    binary=('cifar-10-binary.tar.gz', 'cifar-10-batches-bin'),
    batches={
      'train': tuple(f'data_batch_{i}' for i in range(1, 6)),
      'test': ('test_batch',),
    },
    meta='batches.meta',
    names_file='batches.meta.txt',
    prefixes={'label': ''},
    class_names={'label': official.class_names('cifar10')},
  ),
  'cifar100': _Layout(
    python=('cifar-100-python.tar.gz', 'cifar-100-python'),
    binary=('cifar-100-binary.tar.gz', 'cifar-100-binary'),
    batches={'train': ('train',), 'test': ('test',)},
    meta='meta',
    names_file='label_names.txt',
    prefixes={'coarse_label': 'coarse_', 'label': 'fine_'},
    class_names={
      'coarse_label': official.class_names('cifar100_coarse'),
      'label': official.class_names('cifar100'),
    },
  ),
}


def read_cifar(
  name: str, source: str, *, allow_partial: bool
) -> archives.Contents:
  """Reads one of the archives, or an extracted folder.

  Raises:
    DataError: a file is missing or malformed.
  """
  layout = _LAYOUTS[name]
  path = archives.find(source, *layout.python, *layout.binary)
  archives.verify(path, allow_partial=allow_partial)
  binary = os.path.basename(path) in layout.binary
  suffix, parse = ('.bin', _parse_binary) if binary else ('', _parse_pickle)
  names_files = {
    feature: prefix + layout.names_file if binary else layout.meta
    for feature, prefix in layout.prefixes.items()
  }
  batches = [b + suffix for split in layout.batches.values() for b in split]
  files = archives.read_files(path, [*batches, *names_files.values()])
  for feature, file in names_files.items():
    where, key = f'{path}, {file}', f'{layout.prefixes[feature]}label_names'
    if binary:
      found = files[file].decode('utf-8', 'replace').split()
    else:
      (column,) = _unpickle(where, files[file], [key])
      found = column.tolist()
    if found != layout.class_names[feature]:
      raise errors.DataError(
        f'{where}: {key} is not the official list of classes'
      )
  splits = {}
  for split, batches_of_split in layout.batches.items():
    items: list[archives.Item] = []
    for batch in batches_of_split:
      where = f'{path}, {batch}{suffix}'
      data = files[batch + suffix]
      pixels, *columns = parse(where, data, list(layout.prefixes.values()))
      fits = pixels.dtype == np.uint8 and pixels.shape[1:] == (_PIXELS,)
      for column in columns:
        fits &= column.dtype.kind in 'iu' and column.shape == pixels.shape[:1]
      if not fits:
        raise errors.DataError(
          f'{where}: is not `data`, uint8 [n, {_PIXELS}], and n labels'
        )
      images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
      for image, *labels in zip(images, *columns, strict=True):
        key = f'{split}_{len(items):05d}'  # The same as in TFDS.
        of_image = zip(layout.prefixes, map(int, labels), strict=True)
        items.append(archives.Item(key, dict(of_image), image))
    splits[split] = items
  return archives.Contents(layout.class_names, splits)


def _parse_pickle(
  where: str, data: bytes, prefixes: list[str]
) -> list[np.ndarray]:
  """Returns the pixels of a batch and a column of labels for each prefix."""
  keys = [f'{prefix}labels' for prefix in prefixes]
  return _unpickle(where, data, ['data', *keys])


def _parse_binary(
  where: str, data: bytes, prefixes: list[str]
) -> list[np.ndarray]:
  """Does the same for a batch of records: labels, followed by pixels."""
  columns = len(prefixes)
  if len(data) % (columns + _PIXELS):
    raise errors.DataError(
      f'{where}: has {len(data)} bytes, no multiple of {columns + _PIXELS}'
    )
  rows = np.frombuffer(data, np.uint8).reshape(-1, columns + _PIXELS)
  return [rows[:, columns:], *rows[:, :columns].T]


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


def _unpickle(where: str, data: bytes, keys: list[str]) -> list[np.ndarray]:
  """Unpickles a dict, and returns its values of `keys` as arrays."""
  try:
    # The official files are Python 2's; NumPy reads its arrays as Latin-1.
    batch = _Unpickler(io.BytesIO(data), encoding='latin1').load()
    return [np.asarray(batch[key]) for key in keys]
  except Exception as error:  # A malformed pickle raises any error.
    raise errors.DataError(
      f'{where}: is malformed ({errors.one_line(error)})'
    ) from None
