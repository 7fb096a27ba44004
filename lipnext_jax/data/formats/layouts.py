"""The form in which every reader of an official set returns it.

A reader takes the path of an archive or of a folder that holds it (or what
was extracted from it) and lists every split in the official order, with
nothing decoded yet.
"""

import os
from typing import NamedTuple

from lipnext_jax import errors
from lipnext_jax.data.formats import archives


class Item(NamedTuple):
  """One labelled image to be stored."""

  key: str  # Unique in its set; names the example in records and messages.
  labels: dict[str, int]
  content: archives.Entry | bytes  # An image file, or [ch, h, w] uint8.


class Contents(NamedTuple):
  """An official set as it was found."""

  class_names: dict[str, list[str]]  # Per label feature.
  splits: dict[str, list[Item]]


def find(source: str, names: tuple[str, ...]) -> str | None:
  """Returns the first of `names` that `source` is or holds, or None."""
  for name in names:
    if os.path.basename(os.path.normpath(source)) == name:
      return os.path.normpath(source)
    path = os.path.join(source, name)
    if os.path.exists(path):
      return path
  return None


def not_found(source: str, archive: str, tree: str) -> errors.DataError:
  """Returns the error for a --source without the set.

  >>> str(not_found('/', 'x.zip', 'the folder x'))
  '--source=/: holds neither x.zip nor the folder x'
  """
  if not os.path.exists(source):
    return errors.DataError(f'--source={source}: does not exist')
  return errors.DataError(
    f'--source={source}: holds neither {archive} nor {tree}'
  )


def subfolders(path: str) -> list[str]:
  """Returns the names of the folders right in a folder, sorted.

  Raises:
    DataError: it is no folder.
  """
  if not os.path.isdir(path):
    raise errors.DataError(f'{path}: is no folder')
  with os.scandir(path) as scan:
    return sorted(item.name for item in scan if item.is_dir())
