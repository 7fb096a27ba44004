"""Synthetic images mixed into every batch, from an npz file.

The file holds `image` [n, H, W, ch] uint8 and `label` [n] int. As `np.savez`
writes it, it is memory-mapped: nothing is read before it is needed, and worker
processes share the pages. A compressed file (`np.savez_compressed`) is unpacked
into the memory of each process that reads it.
"""

import os
import struct
from typing import NamedTuple
import zipfile
import zlib

import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import sources

# What NumPy and zipfile raise for missing keys, truncated or altered files.
_UNREADABLE = (
  EOFError,
  KeyError,
  OSError,
  ValueError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)


class Extra(NamedTuple):
  """What is mixed into the real examples."""

  source: sources.Source
  ratio: int  # Mixed-in examples per real one.


class NpzSource:
  """Examples of an npz file; pickling one sends its path, not its arrays.

  Args:
    path: of a file with `image` and `label`.

  Raises:
    KeyError, OSError, ValueError, …: a file that is missing or malformed.
  """

  def __init__(self, path: str):
    self._path = path
    self.images = map_member(path, 'image')
    self.labels = np.asarray(map_member(path, 'label'))

  def __reduce__(self):
    return NpzSource, (self._path,)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> sources.Example:
    image = np.array(self.images[index])  # Off the disk, here and now.
    return {'image': image, 'label': np.int32(self.labels[index])}


def load_extra(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> Extra | None:
  """What the config wants mixed in; None: nothing.

  Args:
    config: its `dataset.extra_npz`, `dataset.extra_ratio` and `augment`.
    dataset: the real one, for its classes and the shape of its images.

  Raises:
    ConfigError: a file that is missing or malformed, or has other classes or
      images that do not end up in the shape of the real ones.
  """
  path, augment = config.dataset.extra_npz, config.augment
  if not config.dataset.extra_ratio:
    return None

  def error(problem: str) -> errors.ConfigError:
    return errors.ConfigError(
      'dataset.extra_npz',
      path,
      problem,
      'it needs `image` [n, H, W, ch] uint8 and `label` [n] int, with the '
      'classes and the shape of the real images',
    )

  if not os.path.isfile(path):
    raise error('is no file')
  try:
    source = NpzSource(path)
  except _UNREADABLE as exception:
    text = ' '.join(str(exception).split())
    raise error(f'cannot be read ({text})') from None
  images, labels = source.images, source.labels
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise error(f'has {images.dtype}{images.shape} as `image`')
  # Only a resize, which ends in a crop, takes images of another size.
  resized = augment.extra.as_real and augment.resize.max
  kept = slice(2 if resized else 0, 3)
  if images.shape[1:][kept] != dataset.image_shape[kept]:
    raise error(
      f'has images of shape {images.shape[1:]}; the real ones end up as '
      f'{dataset.image_shape}'
    )
  integer = np.issubdtype(labels.dtype, np.integer)
  if labels.shape != images.shape[:1] or not integer:
    raise error(f'has {labels.dtype}{labels.shape} as `label`')
  if labels.min() < 0 or labels.max() >= dataset.num_classes:
    raise error(
      f'has labels from {labels.min()} to {labels.max()}; the '
      f'{dataset.num_classes} classes are 0 … {dataset.num_classes - 1}'
    )
  return Extra(source, config.dataset.extra_ratio)


def map_member(path: str, name: str) -> np.ndarray:
  """One array of an npz file, mapped where it lies in the file if possible.

  Args:
    path: of the npz file.
    name: of the array.

  Returns:
    A read-only `np.memmap`, or an array in memory if the member is compressed.

  Raises:
    KeyError: no such array.
    ValueError: pickled objects, which are never loaded, or a damaged header.
    OSError, zipfile.BadZipFile: a file that is no (whole) npz file.
  """
  with zipfile.ZipFile(path) as archive:
    member = archive.getinfo(f'{name}.npy')
    if member.compress_type != zipfile.ZIP_STORED:
      with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]
    with archive.open(member) as file:
      version = np.lib.format.read_magic(file)
      read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, fortran_order, dtype = read_header(file)
      header = file.tell()
  if dtype.hasobject:
    raise ValueError(f'`{name}` holds pickled objects')
  with open(path, 'rb') as raw:
    # Before the data: 30 bytes of local header, the member's name, an extra
    # field. The last four of the 30 are the lengths of the latter two.
    raw.seek(member.header_offset + 26)
    start = sum(struct.unpack('<HH', raw.read(4))) + member.header_offset + 30
  return np.memmap(
    path,
    dtype,
    mode='r',
    offset=start + header,
    shape=shape,
    order='F' if fortran_order else 'C',
  )
