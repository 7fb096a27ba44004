"""Reads ImageNet (ILSVRC2012) from its official tars or extracted folders."""

import io
import os
import re

import numpy as np
import scipy.io
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

_TRAIN_TAR = 'ILSVRC2012_img_train.tar'
_VAL_TAR = 'ILSVRC2012_img_val.tar'
_DEVKIT_TAR = 'ILSVRC2012_devkit_t12.tar.gz'
_GROUND_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'


def read_imagenet(source: str, *, allow_partial: bool) -> layouts.Contents:
  """Reads the official tars in a folder, or the folders train/ and val/.

  Labels are positions in the alphabetical list of the 1000 synsets, as in TFDS
  and torchvision. The validation images may lie in a folder per synset. If not,
  their labels come from the devkit (ILSVRC2012_devkit_t12, the archive or the
  folder) if it is in `source`, else from TFDS's copy.

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
  truth, items = _read_truth(source, allow_partial), []
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


def _read_truth(source: str, allow_partial: bool) -> list[str]:
  """Reads the synset of every validation image, from the devkit or TFDS."""
  path = layouts.find(
    source, (_DEVKIT_TAR, _DEVKIT_TAR.removesuffix('.tar.gz'))
  )
  if path is None:
    return official.imagenet_validation_wnids()
  archives.verify(path, allow_partial=allow_partial)
  names = ('meta.mat', _GROUND_TRUTH)
  if os.path.isdir(path):
    entries = archives.list_folder(os.path.join(path, 'data'))
    files = {e.name: archives.read(e) for e in entries if e.name in names}
  else:
    files = archives.read_tar_gz(path, frozenset(names))
  for name in names:
    if name not in files:
      raise errors.DataError(f'{path}: holds no {name}')
  try:
    # The synsets without children are the classes, with the IDs 1 to 1000.
    synsets = scipy.io.loadmat(io.BytesIO(files['meta.mat']), squeeze_me=True)
    wnid = {
      int(synset['ILSVRC2012_ID']): str(synset['WNID'])
      for synset in np.atleast_1d(synsets['synsets'])
      if int(synset['num_children']) == 0
    }
    truth = [int(line) for line in files[_GROUND_TRUTH].split()]
  except Exception as error:  # SciPy's reader raises any error.
    raise errors.DataError(f'{path}: cannot be read ({error})') from None
  if not set(wnid.values()) <= set(official.imagenet_wnids()):
    raise errors.DataError(f'{path}, meta.mat: is not that of ILSVRC2012')
  for number, value in enumerate(truth, start=1):
    if value not in wnid:
      raise errors.DataError(
        f'{path}, {_GROUND_TRUTH}: line {number}: label {value} is not an '
        f'ILSVRC2012_ID from 1 to {len(wnid)}'
      )
  return [wnid[value] for value in truth]
