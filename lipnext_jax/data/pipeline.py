"""From a source to batches with Grain: shuffled for training, exact for tests.

The training stream is a pure function of (seed, step): order and augmentation
do not depend on the number of workers, and any step can be resumed at.
"""

from collections.abc import Iterator
from collections.abc import Sequence

import grain
import numpy as np

from lipnext_jax.data import sources
from lipnext_jax.data import transforms as transforms_lib

Batch = dict[str, np.ndarray]


class _Augment(grain.transforms.RandomMap):
  """Applies the transforms in turn, from one generator per example."""

  def __init__(self, transforms: Sequence[transforms_lib.Transform]):
    self._transforms = transforms

  def random_map(self, element, rng: np.random.Generator):
    """Grain seeds `rng` from the position in the shuffled stream."""
    image = element['image']
    for transform in self._transforms:
      image = transform(image, rng)
    return {**element, 'image': image}


def train_batches(
  source: sources.Source,
  transforms: Sequence[transforms_lib.Transform],
  *,
  seed: int,
  batch_size: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
) -> Iterator[Batch]:
  """Endless training batches of this process, from `start_step` on.

  Every epoch is a fresh permutation; batches run across epochs, so that no
  example is dropped.

  Args:
    source: training examples.
    transforms: applied in order, each example with its own generator.
    seed: of the order and the augmentation.
    batch_size: over all processes; a multiple of their number.
    start_step: batches to skip, without reading them.
    process_index: which part of each batch to give.
    process_count: number of parts.
    workers: worker processes; 0: threads of this one.

  Yields:
    {'image': [b, H, W, ch], 'label': [b] int32}, b = batch_size/processes.
  """
  ds = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  if transforms:
    ds = ds.random_map(_Augment(transforms))
  # After the random map: every process draws the same randomness per position.
  ds = ds[process_index::process_count]
  ds = ds.batch(batch_size // process_count)
  ds = ds[start_step:]
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
  batches = ds.to_iter_dataset(options)
  if workers:
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers)
    )
  return iter(batches)


class _Padded:
  """A source with ids and a mask, padded to a multiple of the batch."""

  def __init__(self, source: sources.Source, batch_size: int):
    self._source = source
    self._length = -(-len(source) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> sources.Example:
    real = index < len(self._source)
    example = self._source[index if real else 0]
    return {**example, 'id': np.int32(index), 'mask': np.bool_(real)}


def eval_batches(
  source: sources.Source,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Every example once, in order; the last batch is padded and masked.

  Args:
    source: examples to evaluate.
    batch_size: over all processes; a multiple of their number.
    process_index: which part of each batch to give.
    process_count: number of parts.

  Yields:
    {'image', 'label', 'id' [b] int32, 'mask' [b] bool}; padding has mask
    False. All processes yield equally often.
  """
  ds = grain.MapDataset.source(_Padded(source, batch_size))
  ds = ds[process_index::process_count].batch(batch_size // process_count)
  return iter(ds.to_iter_dataset(grain.ReadOptions(num_threads=2)))
