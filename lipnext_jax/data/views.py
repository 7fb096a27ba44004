"""Sources of examples, and views of them: an index in, one example out.

An example is {'image': [H, W, ch] uint8 or float32 in [0, 1], 'label': int32}.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Protocol

import numpy as np

from lipnext_jax.data import transforms

Example = dict[str, np.ndarray | np.generic]


class Source(Protocol):
  """Random access to examples, the interface that Grain expects."""

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitem__(self, index: int) -> Example:
    """Returns the example at `index`."""
    ...

  def names(self) -> list[str]:
    """Returns the file or record name of every example, or [] without names."""
    return []


class ArraySource(Source):
  """Examples in memory.

  >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 4]))
  >>> len(source), int(source[1]['label'])
  (2, 4)
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    """Takes images [n, H, W, ch] and integer labels [n]."""
    self._images = images
    self._labels = labels.astype(np.int32)

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> Example:
    return {'image': self._images[index], 'label': self._labels[index]}


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
    """Reads nothing yet.

    Args:
      source: the examples to choose from.
      indices: positions of the chosen examples, in the order of the view.
      change: function applied to every example that is read.
    """
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


class Cached(Source):
  """All examples of another source, each read once and kept in memory."""

  def __init__(self, source: Source):
    self._source = source
    self._examples: dict[int, Example] = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    if index not in self._examples:
      example = self._source[index]
      # Grey images may be views of RGB ones, which need not be kept.
      image = np.ascontiguousarray(example['image'])
      self._examples[index] = {**example, 'image': image}
    return self._examples[index]

  def names(self) -> list[str]:
    """Returns the names of the examples."""
    return self._source.names()


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
    noise = np.random.default_rng((1, self.seed, index))
    image = pattern + noise.random(self.image_shape)
    return {
      'image': (image * 127.5).astype(np.uint8),
      'label': np.int32(label),
    }


def resized(source: Source, resize: int, size: int) -> View:
  """Returns a source whose images are resized, then cropped in the middle.

  Args:
    source: examples with uint8 images of any size.
    resize: shorter side in pixels before the crop.
    size: side in pixels of the square crop.

  >>> source = ArraySource(np.zeros((1, 8, 6, 3), np.uint8), np.array([3]))
  >>> resized(source, resize=5, size=4)[0]['image'].shape
  (4, 4, 3)
  """

  def change(example: Example) -> Example:
    image = np.asarray(example['image'])
    image = transforms.resize_center_crop(image, resize, size)
    return {**example, 'image': image}

  return View(source, np.arange(len(source)), change)


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
