"""Reads MNIST, Fashion-MNIST and KMNIST from their four official IDX files."""

import hashlib
import math
import struct

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives


def read_idx(
  official_set: official.OfficialSet, source: str, *, allow_partial: bool
) -> archives.Contents:
  """Reads a folder with the four files, each plain or as .gz.

  Raises:
    DataError: a file is missing, malformed or not official.
  """
  assert official_set.image_shape is not None
  height, width, _ = official_set.image_shape
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = (
      _read(official_set, source, f'{prefix}-{name}', shape, allow_partial)
      for name, shape in (
        ('images-idx3-ubyte', (height, width)),
        ('labels-idx1-ubyte', ()),
      )
    )
    if len(images) != len(labels):
      raise errors.DataError(
        f'{source}: has {len(images)} images but {len(labels)} labels of the '
        f'{split} split'
      )
    splits[split] = [
      archives.Item(f'{split}_{i:05d}', {'label': int(label)}, image[..., None])
      for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
  names = {'label': official.class_names(official_set.name)}
  return archives.Contents(names, splits)


def _read(
  official_set: official.OfficialSet,
  source: str,
  name: str,
  shape: tuple[int, ...],
  allow_partial: bool,
) -> np.ndarray:
  """Reads and verifies a file of uint8 [n, *shape]."""
  try:
    path = archives.find(source, f'{name}.gz', name)
  except errors.DataError as error:
    raise errors.DataError(
      f'{error}; give the folder with the four files of {official_set.origin}'
    ) from None
  data = archives.read(archives.stat_file(path))
  digests = [hashlib.sha256(data).hexdigest()]
  if path.endswith('.gz'):
    # Debian's files have the same contents, compressed again.
    data = archives.read_gz(path)
    digests.append(hashlib.sha256(data).hexdigest())
  if official.IDX_CHECKSUMS[official_set.name].isdisjoint(digests):
    problem = f'has the sha256 checksum {digests[-1]}'
    archives.refuse(path, problem, allow_partial=allow_partial)
  start = 4 * (2 + len(shape))
  count, rest = divmod(len(data) - start, math.prod(shape))
  magic = 0x801 + len(shape)  # 0x800, uint8, plus the number of dimensions.
  header = struct.pack(f'>{2 + len(shape)}i', magic, count, *shape)
  if rest or data[:start] != header:
    sizes = '×'.join(map(str, ('n', *shape)))
    raise errors.DataError(
      f'{path}: is cut off, or not an IDX file of {sizes} bytes'
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(count, *shape)
