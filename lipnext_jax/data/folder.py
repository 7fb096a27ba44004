"""Images in folders by class: DIR/train/CLASS/IMAGE and DIR/test/, or one."""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import os
import sys

import numpy as np
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data.formats import archives

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
# Left by Windows and macOS where people look at folders; hidden by name or not.
_LITTER = ('Thumbs.db', 'desktop.ini', '__MACOSX')
_TEST_SPLITS = ('test', 'val')
_SHOWN = 100  # Problems that are listed.
_AT_ONCE = 4096  # Files that are queued to be checked.


class FolderSource:
  """The decoded images of one split, by index."""

  def __init__(
    self,
    data_dir: str,
    entries: Sequence[archives.Entry],
    labels: Sequence[int],
  ):
    """Takes what `open_folder` found: image files and their labels."""
    self._data_dir = data_dir
    self._entries = entries
    self._labels = np.array(labels, np.int32)

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """Returns {'image': uint8 [h, w, 3], 'label': int32}.

    Raises:
      DataError: naming the file that cannot be read or decoded.
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
  """Lists the images of a folder by class, and decodes every one once.

  `data_dir` holds train/ and test/ (or val/), each with a folder per class, or
  the folders of the classes themselves. Images lie anywhere below the folder
  of their class; hidden files and folders are left alone.

  Args:
    data_dir: the folder.
    skip_bad: whether to leave out files that are no whole images, instead of
      refusing the set.

  Returns:
    The training images, the test images (None: there is no such folder), the
    classes by label (the sorted folder names of the training images), and
    notes on what was left out.

  Raises:
    DataError: after all problems were listed on stderr.
  """
  train_dir = os.path.join(data_dir, 'train')
  tests = [os.path.join(data_dir, name) for name in _TEST_SPLITS]
  test_dir = next(filter(os.path.isdir, tests), None)
  problems: list[str] = []
  if not os.path.isdir(train_dir):
    if test_dir:
      problems.append(f'{test_dir}: lies there without {train_dir}')
    train_dir, test_dir = data_dir, None
  classes = _subfolders(train_dir)
  if len(classes) < 2:
    problems.append(
      f'{train_dir}: holds {len(classes)} folders of images; two classes are '
      'the least'
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
  """Returns the images of a split and their labels; adds what is wrong."""
  for name in sorted(os.listdir(directory)):
    path = os.path.join(directory, name)
    if not _is_hidden(name) and _is_image(name) and not os.path.isdir(path):
      problems.append(f'{path}: lies in no folder of a class')
  folders = _subfolders(directory)
  if not folders:
    problems.append(f'{directory}: holds no folders of images')
  paths: list[str] = []
  labels: list[int] = []
  for name in folders:
    path = os.path.join(directory, name)
    if name in classes:
      found = sorted(_walk(path))
      paths += found
      labels += [classes.index(name)] * len(found)
    else:
      problems.append(f'{path}: is no class of the training images')
  images_found, known = [], []
  for checked, label in zip(_check(directory, paths), labels, strict=True):
    if isinstance(checked, str):
      bad.append(checked)
    else:
      images_found.append(checked)
      known.append(label)
  with_images = set(known)
  for name in folders:
    if name in classes and classes.index(name) not in with_images:
      problems.append(f'{os.path.join(directory, name)}: holds no images')
  return images_found, known


def _check(
  directory: str, paths: Sequence[str]
) -> Iterator[archives.Entry | str]:
  """Yields for every file where it lies, or why it is no whole image."""

  def check(path: str) -> archives.Entry | str:
    if not _is_image(path):
      return f'{path}: is no {", ".join(EXTENSIONS)} file'
    try:
      entry = archives.stat_file(path)
      assert entry is not None  # `os.walk` lists no folders among files.
      images.decode(archives.read(entry))
    except images.BadImageError as error:
      return f'{path}: {error}'
    except errors.DataError as error:
      return str(error)
    return entry

  # Pillow releases the interpreter's lock while it decodes.
  with (
    futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm.tqdm(
      total=len(paths),
      desc=f'checking {directory}',
      unit=' images',
      leave=False,
      delay=1,
    ) as bar,
  ):
    for start in range(0, len(paths), _AT_ONCE):
      for checked in pool.map(check, paths[start : start + _AT_ONCE]):
        bar.update()
        yield checked


def _walk(directory: str) -> Iterator[str]:
  """Yields the files below a folder that are not hidden; follows links once."""
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
  """Lists all problems on stderr; returns the error that sums them up."""
  for problem in problems[:_SHOWN]:
    print(errors.printable(problem), file=sys.stderr)
  if len(problems) > _SHOWN:
    print(f'… and {len(problems) - _SHOWN} more', file=sys.stderr)
  count = len(problems)
  text = problems[0] if count == 1 else f'{count} problems, first {problems[0]}'
  leave_out = (
    ', or leave out what is no image with dataset.skip_bad=True'
    if skippable
    else ''
  )
  return errors.DataError(
    f'{data_dir}: {text}. Expected: train/CLASS/IMAGE and test/CLASS/IMAGE (or '
    'val/), or CLASS/IMAGE, which is split automatically; mend it'
    f'{leave_out}'
  )
