"""Images in a folder per class: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE.

DIR/CLASS/IMAGE is a set without a test split.
"""

from collections.abc import Mapping
from collections.abc import Sequence
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
  folders are ignored. Files that are not whole images are an error, or left out
  with `skip_bad`.

  Returns:
    The training images; the test images, or None; the names of the classes by
    label, which are the sorted folder names; messages about files left out.

  Raises:
    DataError: the folder has problems, which are listed on stderr.
  """
  problems: list[str] = []  # Of folders.
  bad: list[str] = []  # Files, each with its problem.
  train_dir = os.path.join(data_dir, 'train')
  tests = [os.path.join(data_dir, name) for name in TEST_SPLITS]
  directories = [train_dir, *filter(os.path.isdir, tests)][:2]
  if not os.path.isdir(train_dir):
    problems += [f'{d}: needs {train_dir} beside it' for d in directories[1:]]
    directories = [data_dir]
  classes, loose = _list_visible(directories[0])
  if len(classes) < 2:
    problem = f'holds {len(classes)} folders of images, and needs two or more'
    if any(map(_is_image, loose)):
      parent = os.path.dirname(directories[0])
      problem += f'; it holds images itself: give {parent}?'
    raise _refuse(data_dir, [*problems, f'{directories[0]}: {problem}'])
  splits = []
  for directory in directories:
    folders, loose = _list_visible(directory)
    why = 'is not in the folder of a class'
    found = dict.fromkeys(filter(_is_image, loose), why)
    if not folders:
      problems.append(f'{directory}: holds no folders of images')
    label_of: dict[str, int] = {}  # By path.
    for name in folders:
      if name in classes:
        paths = list_files(os.path.join(directory, name))
        label_of |= dict.fromkeys(paths, classes.index(name))
        found[name] = 'holds no images'  # Until one is whole.
      else:
        found[name] = 'is not a class of the training images'
    labels = {}
    with pool.ThreadPool() as threads:  # Pillow decodes without the lock.
      checked = tqdm.tqdm(
        threads.imap(_find_problem, label_of, chunksize=16),
        total=len(label_of),
        desc=f'checking {directory}',
        unit=' images',
        leave=False,
        delay=1,
      )
      for (path, label), problem in zip(label_of.items(), checked, strict=True):
        if problem:
          bad.append(f'{path}: {problem}')
        else:
          labels[os.path.relpath(path, data_dir)] = label
          found.pop(classes[label], None)
    problems += [
      f'{os.path.join(directory, name)}: {problem}'
      for name, problem in found.items()
    ]
    splits.append(FolderSource(data_dir, labels))
  if problems or (bad and not skip_bad):
    raise _refuse(data_dir, problems, [] if skip_bad else bad)
  left_out = f'{data_dir}: {len(bad)} files left out: {"".join(bad[:1])}, …'
  test = splits[1] if splits[1:] else None
  return splits[0], test, classes, (left_out,) if bad else ()


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
  data_dir: str, problems: list[str], bad: Sequence[str] = ()
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
    f'automatically; mend it{leave_out if bad else ""}'
  )
