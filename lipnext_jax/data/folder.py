"""Images in a folder per class: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE.

DIR/CLASS/IMAGE is a set without a test split.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from multiprocessing import pool
import os
import sys

import numpy as np
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data.formats import archives

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
# Files and folders that Windows and macOS leave behind.
_LITTER = ('Thumbs.db', 'desktop.ini', '__MACOSX')
_TEST_SPLITS = ('test', 'val')
_SHOWN = 100  # Problems that are listed.


class FolderSource:
  """Images of one split, decoded when they are read."""

  def __init__(
    self,
    data_dir: str,
    entries: Sequence[archives.Entry],
    labels: Sequence[int],
  ):
    """Takes the files of the split and their labels."""
    self._data_dir = data_dir
    self._entries = entries
    self._labels = np.array(labels, np.int32)

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """Returns {'image': uint8 [h, w, 3], 'label': int32}.

    Raises:
      DataError: the file cannot be read or decoded.
    """
    entry = self._entries[index]
    try:
      image = images.decode(archives.read(entry))
    except images.BadImageError as error:
      raise errors.DataError(f'{entry.path}: {error}') from None
    return {'image': image, 'label': self._labels[index]}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n]."""
    return self._labels

  def names(self) -> list[str]:
    """Returns the path of every file below `data_dir`."""
    return [os.path.relpath(e.path, self._data_dir) for e in self._entries]


def open_folder(
  data_dir: str, skip_bad: bool = False
) -> tuple[FolderSource, FolderSource | None, list[str], tuple[str, ...]]:
  """Lists the images of a folder by class, and decodes each of them once.

  Images may lie at any depth below the folder of their class. Hidden files and
  folders are ignored.

  Args:
    data_dir: a folder with train/ and test/ (or val/), or with the folders of
      the classes.
    skip_bad: whether to leave out files that are not whole images, instead of
      raising an error.

  Returns:
    The training images; the test images, or None; the names of the classes by
    label, which are the sorted folder names; messages about files left out.

  Raises:
    DataError: the folder has problems, which are listed on stderr.
  """
  train_dir = os.path.join(data_dir, 'train')
  tests = [os.path.join(data_dir, name) for name in _TEST_SPLITS]
  test_dir = next(filter(os.path.isdir, tests), None)
  problems: list[str] = []
  if not os.path.isdir(train_dir):
    if test_dir:
      problems.append(f'{test_dir}: needs {train_dir} beside it')
    train_dir, test_dir = data_dir, None
  classes = _subfolders(train_dir)
  if len(classes) < 2:
    problems.append(
      f'{train_dir}: holds {len(classes)} folders of images; at least two '
      'classes are needed'
    )
  splits: list[FolderSource] = []
  bad: list[str] = []
  for directory in filter(None, (train_dir, test_dir)):
    found = _list_split(directory, classes, problems, bad)
    splits.append(FolderSource(data_dir, *found))
  if bad and not skip_bad:
    problems += bad
  if problems:
    raise _refuse(data_dir, problems, bool(bad) and not skip_bad)
  notes = (
    (f'{data_dir}: {len(bad)} files left out: {bad[0]}, …',) if bad else ()
  )
  return splits[0], (splits[1] if test_dir else None), classes, notes


def _list_split(
  directory: str, classes: list[str], problems: list[str], bad: list[str]
) -> tuple[list[archives.Entry], list[int]]:
  """Returns the images of a split and their labels.

  Adds problems of the folders to `problems`, and of files to `bad`.
  """
  for name in sorted(os.listdir(directory)):
    path = os.path.join(directory, name)
    if not _is_hidden(name) and _is_image(name) and not os.path.isdir(path):
      problems.append(f'{path}: is not in the folder of a class')
  folders = _subfolders(directory)
  if not folders:
    problems.append(f'{directory}: holds no folders of images')
  paths: list[str] = []
  path_labels: list[int] = []
  for name in folders:
    path = os.path.join(directory, name)
    if name in classes:
      found = sorted(_walk(path))
      paths += found
      path_labels += [classes.index(name)] * len(found)
    else:
      problems.append(f'{path}: is not a class of the training images')
  entries, labels = [], []
  for checked, label in zip(_check(directory, paths), path_labels, strict=True):
    if isinstance(checked, str):
      bad.append(checked)
    else:
      entries.append(checked)
      labels.append(label)
  present = {classes[label] for label in labels}
  problems += [
    f'{os.path.join(directory, name)}: holds no images'
    for name in folders
    if name in classes and name not in present
  ]
  return entries, labels


def _check(
  directory: str, paths: Sequence[str]
) -> Iterator[archives.Entry | str]:
  """Yields an entry for every file, or why it is not a whole image."""

  def check(path: str) -> archives.Entry | str:
    if not _is_image(path):
      return f'{path}: is not a {", ".join(EXTENSIONS)} file'
    try:
      entry = archives.stat_file(path)
      assert entry is not None  # `os.walk` lists no folders among files.
      images.decode(archives.read(entry))
    except images.BadImageError as error:
      return f'{path}: {error}'
    except errors.DataError as error:
      return str(error)
    return entry

  # Pillow releases the interpreter lock while it decodes.
  with pool.ThreadPool(os.cpu_count()) as threads:
    yield from tqdm.tqdm(
      threads.imap(check, paths, chunksize=16),
      total=len(paths),
      desc=f'checking {directory}',
      unit=' images',
      leave=False,
      delay=1,
    )


def _walk(directory: str) -> Iterator[str]:
  """Yields the visible files below a folder; follows every link once."""
  seen: set[str] = set()
  for path, folders, files in os.walk(directory, followlinks=True):
    if (real := os.path.realpath(path)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [name for name in folders if not _is_hidden(name)]
    yield from (os.path.join(path, n) for n in files if not _is_hidden(n))


def _subfolders(directory: str) -> list[str]:
  with os.scandir(directory) as scan:
    return sorted(e.name for e in scan if e.is_dir() and not _is_hidden(e.name))


def _is_hidden(name: str) -> bool:
  return name.startswith('.') or name in _LITTER


def _is_image(name: str) -> bool:
  return os.path.splitext(name)[1].lower() in EXTENSIONS


def _refuse(
  data_dir: str, problems: list[str], skippable: bool
) -> errors.DataError:
  """Lists the problems on stderr, and returns an error that sums them up."""
  for problem in problems[:_SHOWN]:
    print(errors.printable(problem), file=sys.stderr)
  if len(problems) > _SHOWN:
    print(f'… and {len(problems) - _SHOWN} more', file=sys.stderr)
  count = len(problems)
  text = problems[0] if count == 1 else f'{count} problems, first {problems[0]}'
  leave_out = (
    ', or leave out bad files with dataset.skip_bad=True' if skippable else ''
  )
  return errors.DataError(
    f'{data_dir}: {text}. Expected: train/CLASS/IMAGE and test/CLASS/IMAGE (or '
    f'val/), or CLASS/IMAGE, which is split automatically; mend it{leave_out}'
  )
