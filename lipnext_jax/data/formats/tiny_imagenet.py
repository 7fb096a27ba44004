"""Reads Tiny-ImageNet from tiny-imagenet-200.zip or the extracted folder."""

import os
import re

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

_ROOT = 'tiny-imagenet-200'
_CLASSES = official.TINY_IMAGENET.num_classes


def read_tiny_imagenet(source: str, *, allow_partial: bool) -> layouts.Contents:
  """Reads the splits 'train' and 'validation'.

  Labels are positions in wnids.txt. The labels of the official test images were
  never published.

  Raises:
    DataError: a file is missing or malformed.
  """
  path = layouts.find(source, (f'{_ROOT}.zip', _ROOT))
  if path is None:
    # The extracted folder may have another name.
    if not os.path.exists(os.path.join(source, 'wnids.txt')):
      raise layouts.not_found(source, f'{_ROOT}.zip', f'the folder {_ROOT}')
    path = source
  archives.verify(path, allow_partial=allow_partial)
  entries = _list_entries(path)
  wnids = _read_lines(path, entries, 'wnids.txt')
  if len(set(wnids)) != len(wnids) or len(wnids) != _CLASSES:
    raise errors.DataError(
      f'{path}, wnids.txt: does not list {_CLASSES} classes'
    )
  label = {wnid: i for i, wnid in enumerate(wnids)}
  train = []
  for name, entry in entries.items():
    if match := re.fullmatch(r'train/(\w+)/images/([^/]+\.JPEG)', name):
      if match[1] not in label:
        raise errors.DataError(f'{path}: {name} is of no class of wnids.txt')
      train.append(layouts.Item(match[2], {'label': label[match[1]]}, entry))
  train.sort(key=lambda item: (item.labels['label'], _natural(item.key)))
  validation = _list_validation(path, entries, label)
  return layouts.Contents(
    {'label': wnids}, {'train': train, 'validation': validation}
  )


def _list_validation(
  path: str, entries: dict[str, archives.Entry], label: dict[str, int]
) -> list[layouts.Item]:
  """Lists the validation images; checks that each has an annotation."""
  where = f'{path}, val/val_annotations.txt'
  items = []
  for line in _read_lines(path, entries, 'val/val_annotations.txt'):
    name, wnid = [*line.split('\t'), ''][:2]
    if wnid not in label:
      raise errors.DataError(f'{where}: {line!r} names no class of wnids.txt')
    if f'val/images/{name}' not in entries:
      raise errors.DataError(f'{where}: {name!r} is missing from val/images')
    entry = entries[f'val/images/{name}']
    items.append(layouts.Item(name, {'label': label[wnid]}, entry))
  annotated = {item.key for item in items}
  for name in entries:
    folder, _, key = name.rpartition('/')
    if folder == 'val/images' and key not in annotated:
      raise errors.DataError(f'{where}: {key!r} is not labelled there')
  return sorted(items, key=lambda item: _natural(item.key))


def _list_entries(path: str) -> dict[str, archives.Entry]:
  """Lists the files of the zip or the folder, by their path below the root."""
  if not os.path.isdir(path):
    return {
      entry.name.removeprefix(f'{_ROOT}/'): entry
      for entry in archives.list_zip(path)
    }
  entries = {}
  classes = layouts.subfolders(os.path.join(path, 'train'))
  images = [f'train/{wnid}/images' for wnid in classes]
  for below in ('', 'val', 'val/images', *images):
    folder = os.path.join(path, below)
    if not os.path.isdir(folder):
      raise errors.DataError(f'{folder}: is not a folder')
    for entry in archives.list_folder(folder):
      entries[os.path.join(below, entry.name)] = entry
  return entries


def _read_lines(
  path: str, entries: dict[str, archives.Entry], name: str
) -> list[str]:
  """Reads the non-empty lines of a text file."""
  if name not in entries:
    raise errors.DataError(f'{path}: holds no {name}')
  text = archives.read(entries[name]).decode('utf-8', 'replace')
  return [line.strip() for line in text.splitlines() if line.strip()]


def _natural(name: str) -> list[int]:
  """Returns a sort key that puts val_2 before val_10."""
  return [int(number) for number in re.findall(r'\d+', name)]
