"""Makes batches with Grain: shuffled for training, in order for evaluation.

The training batches are a pure function of (seed, step): order and augmentation
do not depend on the number of workers, and a run can resume at any step.
"""

from collections.abc import Generator
from collections.abc import Sequence
from typing import NamedTuple

import grain
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import sources
from lipnext_jax.data import transforms as transforms_lib
from lipnext_jax.data import views
from lipnext_jax.data import workers as workers_lib


class Stream(NamedTuple):
  """Training examples with their transforms and their share of a batch."""

  source: views.Source
  image_shape: tuple[int, int, int]  # [H, W, ch] of a transformed image.
  transforms: Sequence[transforms_lib.Transform] = ()
  batch_size: int = 1  # Examples per batch, over all processes.
  kind: str = 'training example'  # Name of an example in errors.

  def read(self, index: int, rng: np.random.Generator) -> views.Example:
    """Reads and transforms the example at an index.

    Raises:
      DataError: it cannot be read, or ends in another shape.
    """
    example = self.source[index]
    image = stored = np.asarray(example['image'])
    try:
      for transform in self.transforms:
        image = transform(image, rng)
    except images.BadImageError as error:
      raise errors.DataError(f'{self.kind} {index} {error}') from None
    if image.shape != self.image_shape:
      raise errors.DataError(
        f'{self.kind} {index} has shape {stored.shape}, which becomes '
        f'{image.shape}, not {self.image_shape}; set dataset.image_size or '
        'augment.resize, or prepare images of one size'
      )
    return {'image': image, 'label': example['label']}


def build_streams(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> list[Stream]:
  """Returns the stream of real examples, and that of mixed-in ones if any.

  A batch has `config.batch_size` real examples, and `dataset.extra_ratio` times
  as many mixed-in ones.

  Raises:
    ConfigError: the mixed-in images are malformed, or have other classes.
    DataError: the first example of a stream cannot be read or transformed.
  """
  augment, c = config.augment, config.dataset
  shape = dataset.image_shape
  transforms = transforms_lib.build_transforms(augment, shape, dataset.resize)
  streams = [Stream(dataset.train, shape, transforms, config.batch_size)]
  if c.extra_ratio:
    extra = sources.open_npz('dataset.extra_npz', c.extra_npz)
    if extra.labels.max() >= dataset.num_classes:
      raise errors.ConfigError(
        'dataset.extra_npz',
        c.extra_npz,
        f'has labels up to {extra.labels.max()}',
        f'the {dataset.num_classes} classes are 0 … {dataset.num_classes - 1}',
      )
    if not augment.extra.as_real:
      transforms = transforms_lib.crop_and_flip(augment.extra)
    size = c.extra_ratio * config.batch_size
    streams.append(Stream(extra, shape, transforms, size, 'synthetic example'))
  for stream in streams:  # Errors come before anything is written.
    stream.read(0, np.random.default_rng(0))
  return streams


def train_batches(
  streams: Sequence[Stream],
  *,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
) -> Generator[workers_lib.Batch, None, None]:
  """Yields training batches of this process without end, from `start_step` on.

  Every epoch of a stream is a new permutation, and batches cross the ends of
  epochs, so that no example is dropped. Each process gets the same share of
  every stream. In its batch, the streams follow each other.

  Args:
    streams: the real examples, and those mixed into them.
    seed: seed of the order and the augmentation.
    start_step: number of batches to skip; they are not read.
    process_index: index of this process, and so of its part of each batch.
    process_count: number of processes; divides every stream's batch size.
    workers: number of worker processes; 0: threads of this process.

  Yields:
    {'image': [b, H, W, ch], 'label': [b] int32}, b = sum of the streams' batch
    sizes over `process_count`.

  Raises:
    DataError: an example cannot be read, or ends in another shape.
  """
  parts = []
  for number, stream in enumerate(streams):
    # The first stream keeps its order whatever is mixed into it.
    own_seed = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    ds = grain.MapDataset.range(len(stream.source))
    ds = ds.seed(seed if number == 0 else int(own_seed)).shuffle().repeat()
    ds = ds.random_map(stream.read)
    # After the random map, so that its randomness depends on the position in
    # the batch of all processes.
    ds = ds[process_index::process_count]
    # Nothing is dropped: the stream has no end. Keeping a remainder would
    # round its length up, and overflow.
    ds = ds.batch(stream.batch_size // process_count, drop_remainder=True)
    parts.append(ds[start_step:])
  batches = parts[0]
  if len(parts) > 1:
    endless = min(len(part) for part in parts)  # Zip wants equal lengths.
    zipped = grain.experimental.ZipMapDataset([p[:endless] for p in parts])
    batches = zipped.map(
      lambda of_streams: {
        name: np.concatenate([batch[name] for batch in of_streams])
        for name in of_streams[0]
      }
    )
  return workers_lib.iterate(batches, workers)


def eval_batches(
  source: views.Source,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
) -> Generator[workers_lib.Batch, None, None]:
  """Yields every example once, in order; the last batch is padded and masked.

  The arguments are those of `train_batches`; `batch_size`, over all processes,
  is a multiple of their number.

  Yields:
    {'image', 'label', 'id' [b] int32, 'mask' [b] bool}; the mask is False for
    padding. Every process yields the same number of batches.

  Raises:
    DataError: an example cannot be read.
  """
  length = -(-len(source) // batch_size) * batch_size

  def read(index: int) -> views.Example:
    is_real = index < len(source)
    try:
      example = source[index if is_real else 0]
    except images.BadImageError as error:
      raise errors.DataError(f'example {index} {error}') from None
    return {**example, 'id': np.int32(index), 'mask': np.bool_(is_real)}

  ds = grain.MapDataset.range(length).map(read)
  ds = ds[process_index::process_count].batch(batch_size // process_count)
  return workers_lib.iterate(ds, workers)
