"""Images in folders by class: data_dir/train/CLASS/IMAGE, and test/."""

import os

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')


class FolderSource:
  """The decoded images of one split, by index."""

  def __init__(self, directory: str, classes: list[str]):
    """Lists the files of a split.

    Args:
      directory: with one folder per class.
      classes: names of all classes in the order of their labels.

    Raises:
      DataError: a folder that is no class or is empty, or a file in it that is
        no image by its name. Hidden files are left alone.
    """
    self._directory = directory
    self._entries: list[archives.Entry] = []
    labels: list[int] = []
    number = {name: i for i, name in enumerate(classes)}
    for name in layouts.subfolders(directory):
      path = os.path.join(directory, name)
      if name not in number:
        raise errors.DataError(f'{path}: is no class of the training images')
      entries = [
        entry
        for entry in archives.list_folder(path)
        if not entry.name.startswith('.')
      ]
      if not entries:
        raise errors.DataError(f'{path}: holds no images')
      for entry in entries:
        if os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
          raise errors.DataError(
            f'{entry.path}: is no {", ".join(EXTENSIONS)} file'
          )
      self._entries += entries
      labels += [number[name]] * len(entries)
    if not labels:
      raise errors.DataError(f'{directory}: holds no folders of images')
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


def find_split(data_dir: str, names: tuple[str, ...]) -> str:
  """Returns the first of the folders `names` below `data_dir` that exists.

  Raises:
    DataError: none does.
  """
  for name in names:
    path = os.path.join(data_dir, name)
    if os.path.isdir(path):
      return path
  raise errors.DataError(f'{data_dir}: holds no folder {" or ".join(names)}')


def list_classes(directory: str) -> list[str]:
  """Returns the classes by label: the names of a split's folders, sorted.

  Raises:
    DataError: fewer than two.
  """
  classes = [n for n in layouts.subfolders(directory) if not n.startswith('.')]
  if len(classes) < 2:
    raise errors.DataError(
      f'{directory}: holds {len(classes)} folders; two classes are the least'
    )
  return classes
