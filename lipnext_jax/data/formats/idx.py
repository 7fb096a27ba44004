"""Reads MNIST, Fashion-MNIST and KMNIST from their four official IDX files."""

import hashlib
import math

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

# Split → names of the files of images and labels, without .gz.
FILES = {
  'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
  'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
_UINT8 = 0x800  # The magic number is this plus the number of dimensions.


def read_idx(
  official_set: official.OfficialSet, source: str, *, allow_partial: bool
) -> layouts.Contents:
  """Reads a folder with the four files, each plain or as .gz.

  Raises:
    DataError: a file is missing, malformed or not official.

  >>> read_idx(official.KMNIST, '/no/where', allow_partial=False)
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/no/where: does not exist; give the \
folder with the four files of http://codh.rois.ac.jp/kmnist/
  """
  splits = {}
  for split, (images_name, labels_name) in FILES.items():
    count, shape = official_set.splits[split], official_set.image_shape
    assert shape is not None
    images_path, images = _read(
      official_set, source, images_name, (count, *shape[:2]), allow_partial
    )
    labels_path, labels = _read(
      official_set, source, labels_name, (count,), allow_partial
    )
    if len(images) != len(labels):
      raise errors.DataError(
        f'{labels_path}: has {len(labels)} labels, but {images_path} has '
        f'{len(images)} images'
      )
    (wrong,) = np.nonzero(labels >= official_set.num_classes)
    if wrong.size:
      raise errors.DataError(
        f'{labels_path}: label {wrong[0]} (from 0) is {labels[wrong[0]]}, of '
        f'{official_set.num_classes} classes'
      )
    splits[split] = [
      layouts.Item(f'{split}_{i:05d}', {'label': label}, image.tobytes())
      for i, (image, label) in enumerate(
        zip(images, labels.tolist(), strict=True)
      )
    ]
  names = {'label': official.class_names(official_set.name)}
  return layouts.Contents(names, splits)


def _read(
  official_set: official.OfficialSet,
  source: str,
  name: str,
  shape: tuple[int, ...],
  allow_partial: bool,
) -> tuple[str, np.ndarray]:
  """Finds and verifies a file; returns its path and its uint8 array.

  `shape` is that of the official array, which may have more examples.
  """
  path = layouts.find(source, (f'{name}.gz', name))
  if path is None:
    missing = layouts.not_found(source, f'{name}.gz', name)
    raise errors.DataError(
      f'{missing}; give the folder with the four files of {official_set.origin}'
    )
  limit = 4 + 4 * len(shape) + math.prod(shape)  # Size of the official file.
  entry = archives.stat_file(path)
  if entry is None:
    raise errors.DataError(f'{path}: is a folder')
  if path.endswith('.gz'):
    data = archives.read_gz(path, limit)
  elif entry.size > limit:
    raise errors.DataError(f'{path}: holds more than {limit} bytes')
  else:
    data = archives.read(entry)
  array = _parse(path, data, shape)
  checksums = official.IDX_FILES[official_set.name][name]
  # Debian compresses the files again, with other headers but the same contents.
  found = [hashlib.sha256(data).hexdigest()]
  if path.endswith('.gz'):
    found.append(hashlib.sha256(archives.read(entry)).hexdigest())
  if not set(found) & set(checksums):
    archives.refuse(
      path, f'has the sha256 checksum {found[-1]}', allow_partial=allow_partial
    )
  return path, array


def _parse(path: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
  """Parses an IDX file of uint8 [n, *shape[1:]]."""
  start = 4 + 4 * len(shape)
  if len(data) < start:
    raise errors.DataError(f'{path}: ends within its header')
  magic, *sizes = np.frombuffer(data, '>u4', 1 + len(shape)).tolist()
  if magic != _UINT8 + len(shape):
    raise errors.DataError(
      f'{path}: has the magic number {magic} instead of {_UINT8 + len(shape)}'
    )
  if sizes[1:] != list(shape[1:]):
    raise errors.DataError(
      f'{path}: has images of {sizes[1:]} pixels instead of {list(shape[1:])}'
    )
  if len(data) - start != math.prod(sizes):
    raise errors.DataError(
      f'{path}: has {len(data) - start} bytes of data, where its header says '
      f'{math.prod(sizes)}'
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)
