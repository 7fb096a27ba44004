"""The result of the readers of official sets, and how they find their files.

A reader takes the path of an archive, of the folder that holds it, or of the
extracted files. It lists every split in the official order, without decoding.
"""

import os
from typing import NamedTuple

from lipnext_jax import errors
from lipnext_jax.data.formats import archives


class Item(NamedTuple):
  """One labelled image to be stored."""

  key: str  # Name in records and messages, unique in the split.
  labels: dict[str, int]
  content: archives.Entry | bytes  # An image file, or uint8 [ch, h, w].


class Contents(NamedTuple):
  """An official set as it was read."""

  class_names: dict[str, list[str]]  # Label feature → names by label.
  splits: dict[str, list[Item]]


def find(source: str, names: tuple[str, ...]) -> str | None:
  """Returns the path of the first of `names` that `source` is or holds."""
  for name in names:
    if os.path.basename(os.path.normpath(source)) == name:
      return os.path.normpath(source)
    path = os.path.join(source, name)
    if os.path.exists(path):
      return path
  return None


def not_found(source: str, archive: str, tree: str) -> errors.DataError:
  """Returns the error for a `--source` without the set.

  >>> str(not_found('/', 'x.zip', 'the folder x'))
  '--source=/: holds neither x.zip nor the folder x'
  """
  if not os.path.exists(source):
    return errors.DataError(f'--source={source}: does not exist')
  return errors.DataError(
    f'--source={source}: holds neither {archive} nor {tree}'
  )


def subfolders(path: str) -> list[str]:
  """Returns the sorted names of the subfolders of a folder.

  Raises:
    DataError: `path` is not a folder.
  """
  if not os.path.isdir(path):
    raise errors.DataError(f'{path}: is not a folder')
  with os.scandir(path) as scan:
    return sorted(item.name for item in scan if item.is_dir())
