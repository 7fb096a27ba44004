"""Sources of examples, and views of them: an index in, one example out.

An example is {'image': [H, W, ch] uint8 or float32 in [0, 1], 'label': int32}.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any
from typing import Protocol

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import transforms

Example = dict[str, np.ndarray | np.generic]


class Source(Protocol):
  """Random access to examples, the interface that Grain expects."""

  def __len__(self) -> int:
    """Returns the number of examples."""

  def __getitem__(self, index: int) -> Example:
    """Returns the example at `index`.

    Raises:
      DataError: it is damaged, or cannot be read.
    """

  def names(self) -> list[str]:
    """Returns the file or record name of every example, or [] without names."""
    return []


def find_feature(
  features: Mapping[str, Any], kind: type, preferred: Any = ''
) -> str:
  """Returns the name of the feature of a type: `preferred` if several have it.

  Raises:
    ValueError: no feature has the type, or several have it and `preferred` not.

  >>> find_feature({'id': 'x', 'label': 3, 'coarse': 1}, int, 'label')
  'label'
  >>> find_feature({'id': 'x', 'label': 3, 'coarse': 1}, int)
  Traceback (most recent call last):
  ValueError: has 2 features of type int, not one, among id, label, coarse
  """
  found = [n for n, feature in features.items() if isinstance(feature, kind)]
  if preferred in found:
    return preferred
  if len(found) != 1:
    raise ValueError(
      f'has {len(found)} features of type {kind.__name__}, not one, among '
      f'{", ".join(features)}'
    )
  return found[0]


class ArraySource(Source):
  """Examples in arrays: `images` [n, H, W, ch] and integer `labels` [n].

  >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 4]))
  >>> len(source), int(source[1]['label'])
  (2, 4)
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self.images, self.labels = images, labels

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    image = np.array(self.images[index])  # A copy that is not mapped.
    return {'image': image, 'label': np.int32(self.labels[index])}


class NpzSource(ArraySource):
  """Arrays of the user's: `image` [n, H, W, ch] uint8 and `label` [n] int.

  An .npz file is read into the memory of every process that uses it. The folder
  that it unzips to, with image.npy and label.npy, is memory-mapped instead, and
  processes share its pages. Both are pickled as a path.
  """

  def __init__(self, path: str):
    """Opens an .npz file, or a folder with image.npy and label.npy.

    Raises:
      ValueError: the arrays cannot be read, or are not as described above.
    """
    self._path = path
    if not os.path.exists(path):
      raise ValueError('does not exist')
    try:
      if os.path.isdir(path):
        images, labels = (
          np.load(os.path.join(path, name), mmap_mode='r', allow_pickle=False)
          for name in ('image.npy', 'label.npy')
        )
      else:  # Pickled objects are refused: they run code.
        with open(path, 'rb') as file:
          arrays = np.load(file, allow_pickle=False)
          images, labels = arrays['image'], arrays['label']
    except Exception as error:  # NumPy evaluates headers: any error.
      raise ValueError(f'cannot be read ({errors.one_line(error)})') from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
      raise ValueError(f'has {images.dtype}{images.shape} as `image`')
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
      raise ValueError(f'has {labels.dtype}{labels.shape} as `label`')
    if labels.min() < 0:
      raise ValueError(f'has the label {labels.min()}')
    super().__init__(images, labels)

  def __reduce__(self):
    return NpzSource, (self._path,)


@dataclasses.dataclass(frozen=True)
class SyntheticSource(Source):
  """Random uint8 images of any shape, a pure function of (seed, index).

  Every class has a fixed random pattern, and every image is the pattern of its
  class plus noise, so that a model can learn the labels.

  >>> SyntheticSource(4, (8, 8, 3), 10, seed=0)[2]['image'].shape
  (8, 8, 3)
  """

  length: int
  image_shape: tuple[int, int, int]
  num_classes: int
  seed: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> Example:
    label = index % self.num_classes
    pattern = np.random.default_rng((0, label)).random(self.image_shape)
    rng = np.random.default_rng((1, self.seed, index))
    image = (pattern + rng.random(self.image_shape)) * 127.5
    return {'image': image.astype(np.uint8), 'label': np.int32(label)}


class View(Source):
  """Chosen examples of another source, each passed through a function.

  >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 4]))
  >>> int(View(source, [1])[0]['label'])
  4
  """

  def __init__(
    self,
    source: Source,
    indices: Sequence[int] | np.ndarray,
    change: Callable[[Example], Example] | None = None,
  ):
    """Takes a source, positions in it, and a function of an example."""
    self._source, self._change = source, change
    self._indices = np.asarray(indices)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    example = self._source[int(self._indices[index])]
    return self._change(example) if self._change else example

  def names(self) -> list[str]:
    """Returns the names of the chosen examples."""
    names = self._source.names()
    return [names[i] for i in self._indices] if names else []


class Cached(View):
  """All examples of another source, each read once and kept in memory."""

  def __init__(self, source: Source):
    super().__init__(source, np.arange(len(source)))
    self._examples: dict[int, Example] = {}

  def __getitem__(self, index: int) -> Example:
    if index not in self._examples:
      example = super().__getitem__(index)
      # Grey images may be views of RGB ones, which need not be kept.
      image = np.array(example['image'])
      self._examples[index] = {**example, 'image': image}
    return self._examples[index]


def resized(source: Source, resize: int, size: int) -> View:
  """Applies `transforms.resize_center_crop` to the images of a source.

  >>> source = ArraySource(np.zeros((1, 8, 6, 3), np.uint8), np.array([3]))
  >>> resized(source, resize=5, size=4)[0]['image'].shape
  (4, 4, 3)
  """

  def change(example: Example) -> Example:
    image = np.asarray(example['image'])
    cut = transforms.resize_center_crop(image, resize, size)
    return {**example, 'image': cut}

  return View(source, np.arange(len(source)), change)


def select_classes(source: Any, classes: np.ndarray) -> View:
  """Selects the examples of some classes, and numbers these from 0.

  Args:
    source: examples with a method `read_labels`.
    classes: ascending labels, int [k].
  """

  def change(example: Example) -> Example:
    label = np.searchsorted(classes, example['label'])
    return {**example, 'label': np.int32(label)}

  indices = np.flatnonzero(np.isin(source.read_labels(), classes))
  return View(source, indices, change)


def split_classes(
  labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples at random into two parts, every class by the same share.

  Args:
    labels: [n] int.
    share: share of the second part. A class with two or more examples has at
      least one in both parts.
    seed: seed of the draw.

  Returns:
    The positions of the examples of each part, ascending.

  >>> [part.tolist() for part in split_classes(np.array([0, 0, 1, 1]), 0.2, 0)]
  [[1, 3], [0, 2]]
  """
  rng, is_held = np.random.default_rng(seed), np.zeros(len(labels), bool)
  for c in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == c))
    count = min(max(1, round(share * len(members))), len(members) - 1)
    is_held[members[:count]] = True
  return np.flatnonzero(~is_held), np.flatnonzero(is_held)
