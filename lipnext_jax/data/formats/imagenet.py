"""Reads ImageNet (ILSVRC2012) from its official tars or extracted folders."""

import os
import re

import tqdm

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

_TRAIN_TAR = 'ILSVRC2012_img_train.tar'
_VAL_TAR = 'ILSVRC2012_img_val.tar'


def read_imagenet(source: str, *, allow_partial: bool) -> layouts.Contents:
  """Reads the official tars in a folder, or the folders train/ and val/.

  Labels are positions in the alphabetical list of the 1000 synsets, as in TFDS
  and torchvision. Those of validation images come from TFDS's copy of the
  official ground truth, unless the images lie in a folder per synset.

  Raises:
    DataError: a file is missing or malformed.
  """
  where = _find_part(source, _TRAIN_TAR, 'train', allow_partial)
  if os.path.isdir(where):
    classes = _list_tree(where)
  else:
    outer = archives.list_tar(where)
    # 1.28 million headers take a minute or two.
    classes = {
      tar.name.removesuffix('.tar'): archives.list_tar(where, tar)
      for tar in tqdm.tqdm(outer, desc='listing', unit=' classes')
    }
  wnids = official.imagenet_wnids()
  if len(classes) != len(wnids) and not allow_partial:
    raise errors.DataError(
      f'{where}: has {len(classes)} of {len(wnids)} classes; '
      '--allow_partial takes what is there'
    )
  splits = {
    'train': _label_classes(where, classes),
    'validation': _list_validation(source, allow_partial),
  }
  return layouts.Contents({'label': wnids}, splits)


def _find_part(source: str, tar: str, tree: str, allow_partial: bool) -> str:
  """Returns the path of a split's verified tar, or of its extracted folder."""
  for name in (tar, tree):
    path = os.path.join(source, name)
    if os.path.exists(path):
      archives.verify(path, allow_partial=allow_partial)
      return path
  raise layouts.not_found(source, tar, f'{tree}/')


def _list_tree(path: str) -> dict[str, list[archives.Entry]]:
  """Lists the files of a folder of classes, by class."""
  return {
    wnid: archives.list_folder(os.path.join(path, wnid))
    for wnid in layouts.subfolders(path)
  }


def _label_classes(
  where: str, classes: dict[str, list[archives.Entry]]
) -> list[layouts.Item]:
  """Labels images that are listed by synset."""
  label = {wnid: i for i, wnid in enumerate(official.imagenet_wnids())}
  for wnid in classes:
    if wnid not in label:
      raise errors.DataError(f'{where}: {wnid} is not a synset of ILSVRC2012')
  return [
    layouts.Item(os.path.basename(entry.name), {'label': label[wnid]}, entry)
    for wnid in sorted(classes)
    for entry in classes[wnid]
  ]


def _list_validation(source: str, allow_partial: bool) -> list[layouts.Item]:
  where = _find_part(source, _VAL_TAR, 'val', allow_partial)
  if not os.path.isdir(where):
    entries = archives.list_tar(where)
  elif classes := _list_tree(where):
    return _label_classes(where, classes)
  else:
    entries = archives.list_folder(where)
  label = {wnid: i for i, wnid in enumerate(official.imagenet_wnids())}
  truth, items = official.imagenet_validation_wnids(), []
  for entry in sorted(entries):
    name = os.path.basename(entry.name)
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(truth):
      raise errors.DataError(
        f'{where}: {name} has no label in a ground truth of {len(truth)} lines'
      )
    items.append(layouts.Item(name, {'label': label[truth[number - 1]]}, entry))
  return items
