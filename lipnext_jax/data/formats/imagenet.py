"""Reads ImageNet (ILSVRC2012) from its official tars or extracted folders."""

import os
import re

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives


def read_imagenet(source: str, *, allow_partial: bool) -> archives.Contents:
  """Reads the official tars in a folder, or the folders train/ and val/.

  Labels are positions in the alphabetical list of the 1000 synsets, as in TFDS
  and torchvision. A training image lies in the tar or folder of its synset.
  Labels of validation images come, by the number in their names, from TFDS's
  copy of the official ground truth.

  Raises:
    DataError: a file is missing or malformed.
  """
  wnids = official.imagenet_wnids()
  label = {wnid: i for i, wnid in enumerate(wnids)}
  train, validation = [], []
  for entry in _list_split(source, 'train', allow_partial):
    folder, name = os.path.split(entry.name)
    wnid = os.path.basename(folder).removesuffix('.tar')
    if wnid not in label:
      raise errors.DataError(f'{folder} is not of a synset of ILSVRC2012')
    train.append(archives.Item(name, {'label': label[wnid]}, entry))
  train.sort(key=lambda item: item.labels['label'])
  truth = official.imagenet_validation_wnids()
  for entry in _list_split(source, 'val', allow_partial):
    name = os.path.basename(entry.name)
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(truth):
      raise errors.DataError(
        f'{entry.name} has no label in a ground truth of {len(truth)} lines'
      )
    labels = {'label': label[truth[number - 1]]}
    validation.append(archives.Item(name, labels, entry))
  validation.sort(key=lambda item: item.key)
  return archives.Contents(
    {'label': wnids}, {'train': train, 'validation': validation}
  )


def _list_split(
  source: str, name: str, allow_partial: bool
) -> list[archives.Entry]:
  """Lists the files of a split's verified tar, or of its extracted folder."""
  path = archives.find(source, f'ILSVRC2012_img_{name}.tar', name)
  archives.verify(path, allow_partial=allow_partial)
  if os.path.isdir(path):
    return archives.list_folder(path)
  return archives.list_tar(path)
