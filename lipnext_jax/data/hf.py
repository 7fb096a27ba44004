"""Image sets that Hugging Face `datasets` saved to disk, read by index.

That library is an extra, imported when a set is opened.
"""

import os
from typing import Any

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import images

_SAMPLE = 32  # Images looked at to find out whether all have one size.


def list_splits(path: str) -> list[str]:
  """Lists the splits of a saved `DatasetDict`; [] for a single `Dataset`."""
  loaded = _load(path)
  return list(loaded) if isinstance(loaded, dict) else []


class HfSource:
  """The decoded images of a saved set or of one of its splits.

  Pickling sends the path: worker processes map the files anew.

  Attributes:
    class_names: by label, as the set has them.
  """

  def __init__(self, path: str, split: str = ''):
    """Opens a folder of `save_to_disk`.

    Args:
      path: the folder.
      split: of a `DatasetDict`; '': the folder holds one `Dataset`.

    Raises:
      DataError: it cannot be read, or has not one image and one class feature.
    """
    import datasets

    self._path, self._split = path, split
    rows = _load(path)
    rows = rows[split] if split else rows
    self._image = _find(path, rows.features, datasets.Image)
    self._label = _find(path, rows.features, datasets.ClassLabel)
    self.class_names = list(rows.features[self._label].names)
    # The bytes of the files, to be decoded as all image files are here.
    self._rows = rows.cast_column(self._image, datasets.Image(decode=False))

  def __reduce__(self):
    return HfSource, (self._path, self._split)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """Returns {'image': uint8 [h, w, 3], 'label': int32}.

    Raises:
      DataError: naming the record that is damaged or has no label.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    row = self._rows[int(index)]
    where = ', '.join(
      filter(None, (self._path, self._split, f'record {index}'))
    )
    try:
      stored, label = row[self._image], row[self._label]
      data = stored['bytes']
      if data is None:
        with open(stored['path'], 'rb') as file:
          data = file.read(images.MAX_BYTES + 1)
      image = images.decode(data)
    except (images.BadImageError, OSError, TypeError) as error:
      raise errors.DataError(f'{where}: {error}') from None
    if label is None or not 0 <= label < len(self.class_names):
      raise errors.DataError(f'{where}: has the label {label}')
    return {'image': image, 'label': np.int32(label)}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n]."""
    return np.array(self._rows[self._label], np.int32)

  def names(self) -> list[str]:
    """Returns the file names that were saved; [] if there are none."""
    from pyarrow import compute

    column = self._rows.data.column(self._image)  # Not its bytes.
    paths = compute.struct_field(column, 'path').to_pylist()
    return [os.path.basename(p or '') for p in paths] if any(paths) else []

  def find_shape(self) -> tuple[int, int, int] | None:
    """Returns the shape that a sample of the images has; None: it varies."""
    sample = np.linspace(0, len(self) - 1, min(_SAMPLE, len(self)), dtype=int)
    shapes = {np.shape(self[int(i)]['image']) for i in sample}
    return shapes.pop() if len(shapes) == 1 else None


def _load(path: str) -> Any:
  import datasets

  try:
    return datasets.load_from_disk(path)
  except Exception as error:  # Of Arrow, JSON, and fsspec.
    reason = ' '.join(str(error).split())[:300]
    raise errors.DataError(f'{path}: cannot be read ({reason})') from None


def _find(path: str, features: Any, kind: type) -> str:
  """Returns the only feature of a kind."""
  found = [name for name, feature in features.items() if type(feature) is kind]
  if len(found) != 1:
    raise errors.DataError(
      f'{path}: has {len(found)} features of type {kind.__name__}, not one '
      f'({", ".join(f"{n}: {type(f).__name__}" for n, f in features.items())})'
    )
  return found[0]
