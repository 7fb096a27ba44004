"""Image sets that the Hugging Face library `datasets` saved to disk.

The library is an extra, and imported when a set is opened.
"""

import os
from typing import Any

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import views

_SAMPLE = 32  # Images read to find out whether all have the same shape.


def load(path: str) -> dict[str, Any]:
  """Loads the splits of a saved `DatasetDict`, or a `Dataset` as 'train'.

  Raises:
    DataError: the folder cannot be read.
  """
  import datasets

  try:
    loaded = datasets.load_from_disk(path, keep_in_memory=False)
  except Exception as error:  # Arrow, JSON and fsspec raise their own kinds.
    raise errors.DataError(
      f'{path}: cannot be read ({errors.one_line(error)})'
    ) from None
  return loaded if isinstance(loaded, dict) else {'train': loaded}


class HfSource(views.Source):
  """Images of a saved split, decoded when they are read.

  Its pickle has the paths of the files, which worker processes map again. The
  names of the classes, by label, are its `class_names`.
  """

  def __init__(self, name: str, rows: Any):
    """Takes the name of a split, for messages, and its `Dataset`.

    Raises:
      DataError: there is not exactly one image and one class feature.
    """
    import datasets

    self._name = name
    try:
      self._image = views.find_feature(rows.features, datasets.Image)
      self._label = views.find_feature(rows.features, datasets.ClassLabel)
    except ValueError as error:
      raise errors.DataError(f'{name}: {error}') from None
    self.class_names = list(rows.features[self._label].names)
    # The bytes of the files: `images.decode` refuses damaged ones.
    self._rows = rows.cast_column(self._image, datasets.Image(decode=False))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> views.Example:
    row = self._rows[index]
    stored, label = row[self._image], row[self._label]
    count = len(self.class_names)
    try:
      if label not in range(count):
        raise images.BadImageError(f'has label {label} of {count} classes')
      if stored is None or not (stored['bytes'] or stored['path']):
        raise images.BadImageError('has no image')
      data = stored['bytes']
      image = images.decode(
        images.read(stored['path']) if data is None else data
      )
    except images.BadImageError as error:
      raise errors.DataError(f'{self._name}, record {index}: {error}') from None
    return {'image': image, 'label': np.int32(label)}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n]."""
    return np.array(self._rows[self._label], np.int32)

  def names(self) -> list[str]:
    """Returns the saved file names; [] if there are none."""
    paths = self._rows.flatten()[f'{self._image}.path'][:]
    return [os.path.basename(p or '') for p in paths] if any(paths) else []

  @property
  def shape(self) -> tuple[int | None, int | None, int]:
    """Shape of a sample of the images, with None for sizes that vary."""
    sample = np.linspace(0, len(self) - 1, min(_SAMPLE, len(self)), dtype=int)
    shapes = {self[int(i)]['image'].shape for i in sample}
    return shapes.pop() if len(shapes) == 1 else (None, None, 3)
