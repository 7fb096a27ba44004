"""Reads the official sets from their archives, as they are downloaded.

`READERS` maps every set to a function (name, source, allow_partial=…) →
`Contents`. All of them raise a `DataError` if a file is missing, malformed or
not official.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import gzip
import hashlib
import io
import math
import os
import pathlib
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
  content: archives.Content | np.ndarray  # A file, or uint8 [h, w, ch].


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
  contents = READERS[name](name, source, allow_partial=allow_partial)
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
    keys = {'label': 'labels'}  # Label feature → its key in a pickle.
  else:
    python = 'cifar-100-python.tar.gz', 'cifar-100-python'
    binary = 'cifar-100-binary.tar.gz', 'cifar-100-binary'
    batches = {'train': ['train'], 'test': ['test']}
    keys = {'coarse_label': 'coarse_labels', 'label': 'fine_labels'}
    class_names['coarse_label'] = official.class_names('cifar100_coarse')
  path = archives.find(name, source, *python, *binary)
  archives.verify(path, allow_partial=allow_partial)
  suffix = '.bin' if os.path.basename(path) in binary else ''
  files = _open(path, root=binary[1] if suffix else python[1])
  splits = {}
  for split in batches:
    items: list[Item] = []
    for batch in batches[split]:
      data = archives.read(_get(path, files, batch + suffix))
      parse = _split_records if suffix else _unpickle
      with archives.naming(f'{path}, {batch}{suffix}'):
        pixels, *columns = parse(data, keys.values())
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for image, *labels in zip(images, *columns, strict=True):
          key = f'{split}_{len(items):05d}'  # The same as in TFDS.
          of_image = zip(keys, map(int, labels), strict=True)
          items.append(Item(key, dict(of_image), image))
    splits[split] = items
  return Contents(class_names, splits)


def _split_records(data: bytes, keys: Collection[str]) -> list[np.ndarray]:
  """Returns the pixels and the labels of records of labels, then pixels."""
  rows = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + _PIXELS)
  return [rows[:, len(keys) :], *rows[:, : len(keys)].T]


def _unpickle(data: bytes, keys: Collection[str]) -> list[np.ndarray]:
  """Returns the pixels and the labels of a dict."""
  # The official files are Python 2's; NumPy reads its arrays as Latin-1.
  batch = _Unpickler(io.BytesIO(data), encoding='latin1').load()
  return [np.asarray(batch[key]) for key in ('data', *keys)]


# The functions that rebuild NumPy arrays.
_ALLOWED = {
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
  ('numpy.core.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
}


class _Unpickler(pickle.Unpickler):
  """Unpickles arrays in plain containers, and refuses all other code."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns a function that rebuilds arrays, or raises."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'asks for {module}.{name}, not allowed')
    return _ALLOWED[module, name]


# ── MNIST, Fashion-MNIST and KMNIST ──────────────────────────────────────────


def read_idx(name: str, source: str, *, allow_partial: bool) -> Contents:
  """Reads a folder with the four IDX files, each plain or as .gz."""
  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    images, labels = (
      _read_idx_file(name, source, f'{prefix}-{kind}-ubyte', allow_partial)
      for kind in ('images-idx3', 'labels-idx1')
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
  name: str, source: str, file: str, allow_partial: bool
) -> np.ndarray:
  """Reads and verifies a file of uint8 [n, 28, 28], or [n]."""
  path = archives.find(name, source, f'{file}.gz', file)
  data = pathlib.Path(path).read_bytes()
  digests = [hashlib.sha256(data).hexdigest()]
  if path.endswith('.gz'):
    # Debian's files have the same contents, compressed again.
    with archives.naming(path):
      data = gzip.decompress(data)
    digests.append(hashlib.sha256(data).hexdigest())
  if official.IDX_CHECKSUMS[name].isdisjoint(digests):
    problem = f'has the sha256 checksum {digests[-1]}'
    archives.refuse(path, problem, allow_partial=allow_partial)
  shape = (28, 28) if 'idx3' in file else ()
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


def read_imagenet(name: str, source: str, *, allow_partial: bool) -> Contents:
  """Reads the official tars in a folder, or the folders train/ and val/.

  Labels are positions in the alphabetical list of the 1000 synsets, as in TFDS
  and torchvision. A training image lies in the tar or folder of its synset.
  Labels of validation images come, by the number in their names, from TFDS's
  copy of the official ground truth.
  """
  wnids = official.imagenet_words('labels.txt')
  label = {wnid: i for i, wnid in enumerate(wnids)}
  truth = official.imagenet_words('validation_labels.txt')
  splits: dict[str, list[Item]] = {'train': [], 'validation': []}
  for split, short in (('train', 'train'), ('validation', 'val')):
    path = archives.find(name, source, f'ILSVRC2012_img_{short}.tar', short)
    archives.verify(path, allow_partial=allow_partial)
    for file, content in archives.open_files(path).items():
      folder, key = os.path.split(file)
      if '.' not in key:  # Not an image: a LICENSE, for example.
        continue
      wnid = os.path.basename(folder).removesuffix('.tar')
      if split == 'validation':
        match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', key)
        number = int(match[1]) if match else 0
        wnid = truth[number - 1] if 1 <= number <= len(truth) else ''
      if wnid not in label:
        raise errors.DataError(
          f'{path}/{file}: belongs to none of the 1000 classes'
        )
      splits[split].append(Item(key, {'label': label[wnid]}, content))
  splits['train'].sort(key=lambda item: item.labels['label'])
  splits['validation'].sort(key=lambda item: item.key)
  return Contents({'label': wnids}, splits)


# ── Tiny-ImageNet ────────────────────────────────────────────────────────────


def read_tiny_imagenet(
  name: str, source: str, *, allow_partial: bool
) -> Contents:
  """Reads the splits 'train' and 'validation'.

  Labels are positions in wnids.txt. The labels of the official test images were
  never published.
  """
  root, path = 'tiny-imagenet-200', source
  # The extracted folder may have another name.
  if not os.path.exists(os.path.join(source, 'wnids.txt')):
    path = archives.find(name, source, f'{root}.zip', root)
  archives.verify(path, allow_partial=allow_partial)
  files = _open(path, root)
  wnids = _lines(_get(path, files, 'wnids.txt'))
  count = official.SETS[name].num_classes
  if not len(set(wnids)) == len(wnids) == count:
    raise errors.DataError(f'{path}, wnids.txt: does not list {count} classes')
  wnid_of = {
    file: match[1]
    for file in files
    if (match := re.fullmatch(r'train/([^/]+)/images/[^/]+\.JPEG', file))
  }
  for line in _lines(_get(path, files, 'val/val_annotations.txt')):
    key, wnid = [*line.split('\t'), ''][:2]
    wnid_of[f'val/images/{key}'] = wnid
  splits: dict[str, list[Item]] = {'train': [], 'validation': []}
  for file, wnid in wnid_of.items():
    content = _get(path, files, file)
    if wnid not in wnids:
      raise errors.DataError(f'{path}: {file} is of no class of wnids.txt')
    split = 'train' if file.startswith('train/') else 'validation'
    labels = {'label': wnids.index(wnid)}
    splits[split].append(Item(os.path.basename(file), labels, content))
  for items in splits.values():  # val_2 before val_10.
    items.sort(key=lambda item: [*map(int, re.findall(r'\d+', item.key))])
  splits['train'].sort(key=lambda item: item.labels['label'])
  return Contents({'label': wnids}, splits)


def _open(path: str, root: str) -> dict[str, archives.Content]:
  """Returns the files of an archive or folder by their paths below `root`."""
  return {
    os.path.normpath(file).removeprefix(f'{root}/'): content
    for file, content in archives.open_files(path).items()
  }


def _get(
  path: str, files: Mapping[str, archives.Content], file: str
) -> archives.Content:
  """Returns a file of an archive; raises if it has none of this name."""
  if file not in files:
    raise errors.DataError(f'{path}: holds no {file}')
  return files[file]


def _lines(content: archives.Content) -> list[str]:
  """Returns the non-empty lines of a text file."""
  lines = archives.read(content).decode('utf-8', 'replace').splitlines()
  return [line.strip() for line in lines if line.strip()]


READERS: dict[str, Callable[..., Contents]] = {
  **dict.fromkeys(('cifar10', 'cifar100'), read_cifar),
  'tiny_imagenet': read_tiny_imagenet,
  'imagenet': read_imagenet,
  **dict.fromkeys(official.IDX_CHECKSUMS, read_idx),
}
