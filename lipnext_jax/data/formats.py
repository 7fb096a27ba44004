"""Reads the official sets from their archives, as they are downloaded.

`READERS` maps every set to a function (source, allow_partial=…) → `Contents`.
All of them raise a `DataError` if a file is missing, malformed or not official.
"""

from collections.abc import Callable
import functools
import hashlib
import io
import math
import os
import pickle
import re
import struct
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import archives
from lipnext_jax.data import official


class Item(NamedTuple):
  """One labelled image to be stored."""

  key: str  # Name in records and messages.
  labels: dict[str, int]
  # An image file, or uint8 [h, w, ch].
  content: archives.Entry | bytes | np.ndarray


class Contents(NamedTuple):
  """An official set as it was read, every split in its official order."""

  class_names: dict[str, list[str]]  # Label feature → names by label.
  splits: dict[str, list[Item]]


def read_set(name: str, source: str, *, allow_partial: bool) -> Contents:
  """Reads an official set, and checks its labels and counts.

  Args:
    name: a key of `READERS`.
    source: path of an archive, or of a folder of archives or files.
    allow_partial: whether to accept unofficial files, and fewer examples.

  Raises:
    DataError: a file is missing, malformed or not official.
  """
  facts = official.SETS[name]
  contents = READERS[name](source, allow_partial=allow_partial)
  for split, expected in facts.splits.items():
    items = contents.splits[split]
    where = f'{source}, split {split}'
    for item in items:
      for feature, label in item.labels.items():
        count = len(contents.class_names[feature])
        if not 0 <= label < count:
          raise errors.DataError(
            f'{where}, {item.key}: has {feature} {label} of {count} classes'
          )
    fewest = 1 if allow_partial else expected
    if not fewest <= len(items) <= expected:
      raise errors.DataError(
        f'{where}: has {len(items)} examples, where the official set has '
        f'{expected}; fetch it again, or take what is there with '
        '--allow_partial'
      )
  return contents


# ── CIFAR ────────────────────────────────────────────────────────────────────

_PIXELS = 3 * 32 * 32  # Values of an image: red, then green, then blue.


def read_cifar(name: str, source: str, *, allow_partial: bool) -> Contents:
  """Reads the Python or the binary archive, or its extracted folder."""
  class_names = {'label': official.class_names(name)}
  if name == 'cifar10':
    python = 'cifar-10-python.tar.gz', 'cifar-10-batches-py'
    binary = 'cifar-10-binary.tar.gz', 'cifar-10-batches-bin'
    train = [f'data_batch_{i}' for i in range(1, 6)]
    batches = {'train': train, 'test': ['test_batch']}
    prefixes = {'label': ''}  # Label feature → prefix of its name.
  else:
    python = 'cifar-100-python.tar.gz', 'cifar-100-python'
    binary = 'cifar-100-binary.tar.gz', 'cifar-100-binary'
    batches = {'train': ['train'], 'test': ['test']}
    prefixes = {'coarse_label': 'coarse_', 'label': 'fine_'}
    class_names['coarse_label'] = official.class_names('cifar100_coarse')
  path = archives.find(source, *python, *binary)
  archives.verify(path, allow_partial=allow_partial)
  is_binary = os.path.basename(path) in binary
  suffix = '.bin' if is_binary else ''
  names = [batch + suffix for split in batches.values() for batch in split]
  files = archives.read_files(path, names)
  splits = {}
  for split in batches:
    items: list[Item] = []
    for batch in batches[split]:
      where, data = f'{path}, {batch}{suffix}', files[batch + suffix]
      if is_binary:
        pixels, *columns = _split_records(where, data, len(prefixes))
      else:
        keys = ['data', *(f'{prefix}labels' for prefix in prefixes.values())]
        pixels, *columns = _unpickle(where, data, keys)
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
        of_image = zip(prefixes, map(int, labels), strict=True)
        items.append(Item(key, dict(of_image), image))
    splits[split] = items
  return Contents(class_names, splits)


def _split_records(where: str, data: bytes, labels: int) -> list[np.ndarray]:
  """Returns the pixels of records of labels and pixels, and the labels."""
  size = labels + _PIXELS
  if len(data) % size:
    raise errors.DataError(
      f'{where}: has {len(data)} bytes, no multiple of {size}'
    )
  rows = np.frombuffer(data, np.uint8).reshape(-1, size)
  return [rows[:, labels:], *rows[:, :labels].T]


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


# ── MNIST, Fashion-MNIST and KMNIST ──────────────────────────────────────────


def read_idx(name: str, source: str, *, allow_partial: bool) -> Contents:
  """Reads a folder with the four IDX files, each plain or as .gz."""
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = (
      _read_idx_file(name, source, f'{prefix}-{file}', shape, allow_partial)
      for file, shape in (
        ('images-idx3-ubyte', (28, 28)),
        ('labels-idx1-ubyte', ()),
      )
    )
    if len(images) != len(labels):
      raise errors.DataError(
        f'{source}: has {len(images)} images but {len(labels)} labels of the '
        f'{split} split'
      )
    splits[split] = [
      Item(f'{split}_{i:05d}', {'label': int(label)}, image[..., None])
      for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
  return Contents({'label': official.class_names(name)}, splits)


def _read_idx_file(
  name: str,
  source: str,
  file: str,
  shape: tuple[int, ...],
  allow_partial: bool,
) -> np.ndarray:
  """Reads and verifies a file of uint8 [n, *shape]."""
  try:
    path = archives.find(source, f'{file}.gz', file)
  except errors.DataError as error:
    facts = official.SETS[name]
    origin = facts.origin or facts.homepage
    raise errors.DataError(
      f'{error}; give the folder with the four files of {origin}'
    ) from None
  data = archives.read(archives.stat_file(path))
  digests = [hashlib.sha256(data).hexdigest()]
  if path.endswith('.gz'):
    # Debian's files have the same contents, compressed again.
    data = archives.read_gz(path)
    digests.append(hashlib.sha256(data).hexdigest())
  if official.IDX_CHECKSUMS[name].isdisjoint(digests):
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


# ── ImageNet ─────────────────────────────────────────────────────────────────


def read_imagenet(source: str, *, allow_partial: bool) -> Contents:
  """Reads the official tars in a folder, or the folders train/ and val/.

  Labels are positions in the alphabetical list of the 1000 synsets, as in TFDS
  and torchvision. A training image lies in the tar or folder of its synset.
  Labels of validation images come, by the number in their names, from TFDS's
  copy of the official ground truth.
  """
  listed = {}
  for split in ('train', 'val'):
    path = archives.find(source, f'ILSVRC2012_img_{split}.tar', split)
    archives.verify(path, allow_partial=allow_partial)
    as_list = archives.list_folder if os.path.isdir(path) else archives.list_tar
    listed[split] = as_list(path)
  wnids = official.imagenet_words('labels.txt')
  label = {wnid: i for i, wnid in enumerate(wnids)}
  train, validation = [], []
  for entry in listed['train']:
    folder, name = os.path.split(entry.name)
    wnid = os.path.basename(folder).removesuffix('.tar')
    if wnid not in label:
      raise errors.DataError(f'{folder} is not of a synset of ILSVRC2012')
    train.append(Item(name, {'label': label[wnid]}, entry))
  train.sort(key=lambda item: item.labels['label'])
  truth = official.imagenet_words('validation_labels.txt')
  for entry in listed['val']:
    name = os.path.basename(entry.name)
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(truth):
      raise errors.DataError(
        f'{entry.name} has no label in a ground truth of {len(truth)} lines'
      )
    validation.append(Item(name, {'label': label[truth[number - 1]]}, entry))
  validation.sort(key=lambda item: item.key)
  return Contents({'label': wnids}, {'train': train, 'validation': validation})


# ── Tiny-ImageNet ────────────────────────────────────────────────────────────


def read_tiny_imagenet(source: str, *, allow_partial: bool) -> Contents:
  """Reads the splits 'train' and 'validation' into memory (250 MB).

  Labels are positions in wnids.txt. The labels of the official test images were
  never published.
  """
  root, path = 'tiny-imagenet-200', source
  # The extracted folder may have another name.
  if not os.path.exists(os.path.join(source, 'wnids.txt')):
    path = archives.find(source, f'{root}.zip', root)
  archives.verify(path, allow_partial=allow_partial)
  if os.path.isdir(path):
    files = {
      os.path.relpath(entry.name, path): archives.read(entry)
      for entry in archives.list_folder(path)
    }
  else:
    files = {
      name.removeprefix(f'{root}/'): data
      for name, data in archives.read_zip(path).items()
    }
  for name in ('wnids.txt', 'val/val_annotations.txt'):
    if name not in files:
      raise errors.DataError(f'{path}: holds no {name}')
  wnids = _lines(files['wnids.txt'])
  count = official.SETS['tiny_imagenet'].num_classes
  if not len(set(wnids)) == len(wnids) == count:
    raise errors.DataError(f'{path}, wnids.txt: does not list {count} classes')
  wnid_of = {
    name: match[1]
    for name in files
    if (match := re.fullmatch(r'train/([^/]+)/images/[^/]+\.JPEG', name))
  }
  for line in _lines(files['val/val_annotations.txt']):
    name, wnid = [*line.split('\t'), ''][:2]
    wnid_of[f'val/images/{name}'] = wnid
  splits: dict[str, list[Item]] = {'train': [], 'validation': []}
  for name, wnid in wnid_of.items():
    if name not in files:
      raise errors.DataError(f'{path}: holds no {name}')
    if wnid not in wnids:
      raise errors.DataError(f'{path}: {name} is of no class of wnids.txt')
    split = 'train' if name.startswith('train/') else 'validation'
    key, labels = os.path.basename(name), {'label': wnids.index(wnid)}
    splits[split].append(Item(key, labels, files[name]))
  for items in splits.values():  # val_2 before val_10.
    items.sort(key=lambda item: [*map(int, re.findall(r'\d+', item.key))])
  splits['train'].sort(key=lambda item: item.labels['label'])
  return Contents({'label': wnids}, splits)


def _lines(data: bytes) -> list[str]:
  """Returns the non-empty lines of a text file."""
  lines = data.decode('utf-8', 'replace').splitlines()
  return [line.strip() for line in lines if line.strip()]


READERS: dict[str, Callable[..., Contents]] = {
  'cifar10': functools.partial(read_cifar, 'cifar10'),
  'cifar100': functools.partial(read_cifar, 'cifar100'),
  'tiny_imagenet': read_tiny_imagenet,
  'imagenet': read_imagenet,
  **{
    name: functools.partial(read_idx, name) for name in official.IDX_CHECKSUMS
  },
}
