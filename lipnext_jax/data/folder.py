"""Images in a folder per class: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE.

DIR/CLASS/IMAGE is a set without a test split.
"""

from collections.abc import Mapping
from multiprocessing import pool
import os
import sys

import numpy as np
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import views

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
# Files and folders that Windows and macOS leave behind.
_LITTER = ('Thumbs.db', 'desktop.ini', '__MACOSX')
# Names of test splits; the first that a set has is used.
TEST_SPLITS = ('test', 'validation', 'val')
_SHOWN = 100  # Problems that are listed.


class FolderSource(views.Source):
  """Images of one split, decoded when they are read."""

  def __init__(self, data_dir: str, labels: Mapping[str, int]):
    """Takes the label of every file, by its path below `data_dir`."""
    self._data_dir, self._names = data_dir, list(labels)
    self._labels = np.array(list(labels.values()), np.int32)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> views.Example:
    """Returns {'image': uint8 [h, w, 3], 'label': int32}.

    Raises:
      DataError: the file cannot be read or decoded.
    """
    path = os.path.join(self._data_dir, self._names[index])
    try:
      image = images.decode(images.read(path))
    except images.BadImageError as error:
      raise errors.DataError(f'{path}: {error}') from None
    return {'image': image, 'label': self._labels[index]}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n]."""
    return self._labels

  def names(self) -> list[str]:
    """Returns the path of every file below `data_dir`."""
    return self._names


def open_folder(
  data_dir: str, skip_bad: bool = False
) -> tuple[FolderSource, FolderSource | None, list[str], tuple[str, ...]]:
  """Lists the images of a folder by class, and decodes each of them once.

  Images may lie at any depth below the folder of their class. Hidden files and
  folders are ignored.

  Args:
    data_dir: a folder with train/ and one of `TEST_SPLITS`, or with the folders
      of the classes.
    skip_bad: whether to leave out files that are not whole images, instead of
      raising an error.

  Returns:
    The training images; the test images, or None; the names of the classes by
    label, which are the sorted folder names; messages about files left out.

  Raises:
    DataError: the folder has problems, which are listed on stderr.
  """
  train_dir = os.path.join(data_dir, 'train')
  tests = [os.path.join(data_dir, name) for name in TEST_SPLITS]
  test_dir = next(filter(os.path.isdir, tests), None)
  problems: list[str] = []
  if not os.path.isdir(train_dir):
    if test_dir:
      problems.append(f'{test_dir}: needs {train_dir} beside it')
    train_dir, test_dir = data_dir, None
  classes, loose = _list_visible(train_dir)
  if len(classes) < 2:
    problem = f'holds {len(classes)} folders of images, and needs two or more'
    if any(map(_is_image, loose)):
      problem += f'; it holds images itself: give {os.path.dirname(train_dir)}?'
    raise _refuse(data_dir, [*problems, f'{train_dir}: {problem}'], [])
  bad: list[str] = []
  splits = []
  for directory in filter(None, (train_dir, test_dir)):
    labels = _list_split(directory, classes, problems, bad)
    below = {os.path.relpath(path, data_dir): labels[path] for path in labels}
    splits.append(FolderSource(data_dir, below))
  if problems or (bad and not skip_bad):
    raise _refuse(data_dir, problems, [] if skip_bad else bad)
  notes = (
    (f'{data_dir}: {len(bad)} files left out: {bad[0]}, …',) if bad else ()
  )
  return splits[0], (splits[1] if test_dir else None), classes, notes


def list_files(directory: str) -> list[str]:
  """Returns the sorted paths of the visible files at any depth of a folder.

  Every link to a folder is followed once.
  """
  found: list[str] = []
  seen: set[str] = set()
  for path, folders, files in os.walk(directory, followlinks=True):
    if (real := os.path.realpath(path)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(filter(_is_visible, folders))
    found += [os.path.join(path, name) for name in filter(_is_visible, files)]
  return sorted(found)


def _list_split(
  directory: str, classes: list[str], problems: list[str], bad: list[str]
) -> dict[str, int]:
  """Returns the label of every whole image of a split, by its path.

  Adds problems of the folders to `problems`, and of files to `bad`.
  """
  folders, files = _list_visible(directory)
  problems += [
    f'{os.path.join(directory, name)}: is not in the folder of a class'
    for name in files
    if _is_image(name)
  ]
  if not folders:
    problems.append(f'{directory}: holds no folders of images')
  labels: dict[str, int] = {}
  for name in folders:
    path = os.path.join(directory, name)
    if name in classes:
      labels |= dict.fromkeys(list_files(path), classes.index(name))
    else:
      problems.append(f'{path}: is not a class of the training images')
  # Pillow releases the interpreter lock while it decodes.
  with pool.ThreadPool() as threads:
    checks = tqdm.tqdm(
      threads.imap(_find_problem, labels, chunksize=16),
      total=len(labels),
      desc=f'checking {directory}',
      unit=' images',
      leave=False,
      delay=1,
    )
    found = dict(zip(labels, checks, strict=True))
  bad += [f'{path}: {problem}' for path, problem in found.items() if problem]
  whole = {path: labels[path] for path in labels if not found[path]}
  present = {classes[label] for label in whole.values()}
  problems += [
    f'{os.path.join(directory, name)}: holds no images'
    for name in folders
    if name in classes and name not in present
  ]
  return whole


def _find_problem(path: str) -> str:
  """Returns why a file is not a whole image, or ''."""
  if not _is_image(path):
    return f'is not a {", ".join(EXTENSIONS)} file'
  try:
    images.decode(images.read(path))
  except images.BadImageError as error:
    return str(error)
  return ''


def _list_visible(directory: str) -> tuple[list[str], list[str]]:
  """Returns the sorted names of the visible folders, and of the files."""
  names = sorted(filter(_is_visible, os.listdir(directory)))
  folders = [n for n in names if os.path.isdir(os.path.join(directory, n))]
  return folders, sorted({*names} - {*folders})


def _is_visible(name: str) -> bool:
  return not name.startswith('.') and name not in _LITTER


def _is_image(name: str) -> bool:
  return name.lower().endswith(EXTENSIONS)


def _refuse(
  data_dir: str, problems: list[str], bad: list[str]
) -> errors.DataError:
  """Lists the problems on stderr, and returns an error that sums them up."""
  found = [*problems, *bad]
  for problem in found[:_SHOWN]:
    print(errors.printable(problem), file=sys.stderr)
  if len(found) > _SHOWN:
    print(f'… and {len(found) - _SHOWN} more', file=sys.stderr)
  count = f'{len(found)} problems, first ' if len(found) > 1 else ''
  leave_out = ', or leave out bad files with dataset.skip_bad=True'
  return errors.DataError(
    f'{data_dir}: {count}{found[0]}. Expected: train/CLASS/IMAGE and '
    'test/CLASS/IMAGE (or validation/, val/), or CLASS/IMAGE, which is split '
    'automatically; '
    f'mend it{leave_out if bad else ""}'
  )
