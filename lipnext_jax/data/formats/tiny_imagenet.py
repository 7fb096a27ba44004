"""Tiny-ImageNet from tiny-imagenet-200.zip or what it extracts to."""

import os
import re

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

_CLASSES = official.TINY_IMAGENET.num_classes


def read_tiny_imagenet(source: str, *, allow_partial: bool) -> layouts.Contents:
  """tiny-imagenet-200.zip, or the folder tiny-imagenet-200.

  Labels are positions in wnids.txt; the splits are 'train' and 'validation'
  (those of the official test images were never published).

  Raises:
    DataError: naming the archive and the file that is missing or malformed.

  >>> read_tiny_imagenet('/no/where', allow_partial=False)
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/no/where: does not exist
  """
  del allow_partial  # Only the counts tell, which are checked for all sets.
  root = 'tiny-imagenet-200'
  path = layouts.find(source, (f'{root}.zip', root))
  if path is None:
    # The folder itself, whatever its name.
    if not os.path.exists(os.path.join(source, 'wnids.txt')):
      raise layouts.not_found(source, f'{root}.zip', f'the folder {root}')
    path = source
  if os.path.isdir(path):
    entries: dict[str, archives.Entry] = {}
    for below in ('', 'val', 'val/images'):
      _add_folder(entries, path, below)
    for wnid in layouts.subfolders(os.path.join(path, 'train')):
      _add_folder(entries, path, f'train/{wnid}/images')
  else:
    entries = {
      entry.name.removeprefix(f'{root}/'): entry
      for entry in archives.list_zip(path)
    }

  def lines(name):
    if name not in entries:
      raise errors.DataError(f'{path}: holds no {name}')
    return archives.read(entries[name]).decode('utf-8', 'replace').splitlines()

  wnids = [line.strip() for line in lines('wnids.txt') if line.strip()]
  label = _numbered(wnids, f'{path}, wnids.txt')
  train, validation = [], []
  for name, entry in entries.items():
    if match := re.fullmatch(r'train/(\w+)/images/([^/]+\.JPEG)', name):
      if match[1] not in label:
        raise errors.DataError(f'{path}: {name} is of no class of wnids.txt')
      train.append(layouts.Item(match[2], {'label': label[match[1]]}, entry))
  where = f'{path}, val/val_annotations.txt'
  for line in lines('val/val_annotations.txt'):
    name, _, rest = line.partition('\t')
    wnid = rest.partition('\t')[0]
    if wnid not in label:
      raise errors.DataError(f'{where}: {line!r} names no class of wnids.txt')
    if f'val/images/{name}' not in entries:
      raise errors.DataError(f'{where}: {name!r} is missing from val/images')
    entry = entries[f'val/images/{name}']
    validation.append(layouts.Item(name, {'label': label[wnid]}, entry))
  annotated = {item.key for item in validation}
  for name in entries:
    folder, _, key = name.rpartition('/')
    if folder == 'val/images' and key not in annotated:
      raise errors.DataError(f'{where}: {key!r} is not labelled there')
  train.sort(key=lambda item: (item.labels['label'], _natural(item.key)))
  validation.sort(key=lambda item: _natural(item.key))
  return layouts.Contents(
    {'label': wnids}, {'train': train, 'validation': validation}
  )


def _add_folder(entries, root: str, below: str) -> None:
  path = os.path.join(root, below)
  if not os.path.isdir(path):
    raise errors.DataError(f'{path}: is no folder')
  for entry in archives.list_folder(path):
    name = os.path.join(below, entry.name)
    entries[name] = entry


def _numbered(names: list[str], where: str) -> dict[str, int]:
  if len(set(names)) != len(names) or len(names) != _CLASSES:
    raise errors.DataError(f'{where}: is no list of {_CLASSES} classes')
  return {name: i for i, name in enumerate(names)}


def _natural(name: str) -> list[int]:
  """Sorts val_2 before val_10."""
  return [int(number) for number in re.findall(r'\d+', name)]
