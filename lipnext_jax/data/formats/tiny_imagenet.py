"""Reads Tiny-ImageNet from tiny-imagenet-200.zip or the extracted folder."""

import os
import re

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives

_ROOT = 'tiny-imagenet-200'


def read_tiny_imagenet(
  source: str, *, allow_partial: bool
) -> archives.Contents:
  """Reads the splits 'train' and 'validation' into memory (250 MB).

  Labels are positions in wnids.txt. The labels of the official test images were
  never published.

  Raises:
    DataError: a file is missing or malformed.
  """
  path = source  # The extracted folder may have another name.
  if not os.path.exists(os.path.join(source, 'wnids.txt')):
    path = archives.find(source, f'{_ROOT}.zip', _ROOT)
  archives.verify(path, allow_partial=allow_partial)
  if os.path.isdir(path):
    files = {
      os.path.relpath(entry.name, path): archives.read(entry)
      for entry in archives.list_folder(path)
    }
  else:
    files = {
      name.removeprefix(f'{_ROOT}/'): data
      for name, data in archives.read_zip(path).items()
    }
  wnids = _read_lines(path, files, 'wnids.txt')
  count = official.TINY_IMAGENET.num_classes
  if not len(set(wnids)) == len(wnids) == count:
    raise errors.DataError(f'{path}, wnids.txt: does not list {count} classes')
  wnid_of = {
    name: match[1]
    for name in files
    if (match := re.fullmatch(r'train/([^/]+)/images/[^/]+\.JPEG', name))
  }
  for line in _read_lines(path, files, 'val/val_annotations.txt'):
    name, wnid = [*line.split('\t'), ''][:2]
    wnid_of[f'val/images/{name}'] = wnid
  splits: dict[str, list[archives.Item]] = {'train': [], 'validation': []}
  for name, wnid in wnid_of.items():
    if name not in files:
      raise errors.DataError(f'{path}: holds no {name}')
    if wnid not in wnids:
      raise errors.DataError(f'{path}: {name} is of no class of wnids.txt')
    split = 'train' if name.startswith('train/') else 'validation'
    key, labels = os.path.basename(name), {'label': wnids.index(wnid)}
    splits[split].append(archives.Item(key, labels, files[name]))
  for items in splits.values():
    items.sort(key=lambda item: _natural(item.key))
  splits['train'].sort(key=lambda item: item.labels['label'])
  return archives.Contents({'label': wnids}, splits)


def _read_lines(path: str, files: dict[str, bytes], name: str) -> list[str]:
  """Returns the non-empty lines of a text file."""
  if name not in files:
    raise errors.DataError(f'{path}: holds no {name}')
  text = files[name].decode('utf-8', 'replace')
  return [line.strip() for line in text.splitlines() if line.strip()]


def _natural(name: str) -> list[int]:
  """Returns a sort key that puts val_2 before val_10."""
  return [int(number) for number in re.findall(r'\d+', name)]
