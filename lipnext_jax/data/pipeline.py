"""Makes batches with Grain: shuffled for training, in order for evaluation.

The training batches are a pure function of (seed, step): order and augmentation
do not depend on the number of workers, and a run can resume at any step.
"""

from collections.abc import Generator
from collections.abc import Sequence
import os
import struct
from typing import NamedTuple

import grain
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import npz
from lipnext_jax.data import pillow
from lipnext_jax.data import sources
from lipnext_jax.data import transforms as transforms_lib
from lipnext_jax.data import views
from lipnext_jax.data import workers as workers_lib


class Stream(NamedTuple):
  """Training examples with their transforms and their share of a batch."""

  source: views.Source
  transforms: Sequence[transforms_lib.Transform] = ()
  batch_size: int = 1  # Examples per batch, over all processes.


def build_streams(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> list[Stream]:
  """Returns the stream of real examples, and that of mixed-in ones if any.

  A batch has `config.batch_size` real examples, and `dataset.extra_ratio` times
  as many mixed-in ones.

  Raises:
    ConfigError: transforms or mixed-in images that do not fit the dataset.
    UserError: the first example cannot be read.
  """
  shape, resize, augment = dataset.image_shape, dataset.resize, config.augment
  first = _Readable(dataset.train, 'training example')[0]['image']
  transforms_lib.check_image(augment, np.asarray(first))
  transforms = transforms_lib.build_transforms(augment, shape, resize)
  streams = [Stream(dataset.train, transforms, config.batch_size)]
  if config.dataset.extra_ratio:
    if not augment.extra.as_real:
      transforms = transforms_lib.crop_and_flip(augment.extra)
    size = config.dataset.extra_ratio * config.batch_size
    streams.append(Stream(_open_extra(config, dataset), transforms, size))
  return streams


def _open_extra(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> npz.NpzSource:
  """Opens the images of `dataset.extra_npz`; checks that they fit `dataset`."""
  path = os.path.expanduser(config.dataset.extra_npz)

  def error(problem: object) -> errors.ConfigError:
    return errors.ConfigError(
      'dataset.extra_npz',
      path,
      str(problem),
      'it needs `image` [n, H, W, ch] uint8 and `label` [n] int, with the '
      'classes and the shape of the real images',
    )

  try:
    source = npz.NpzSource(path)
  except ValueError as problem:
    raise error(problem) from None
  # Images of another size need a resize, after which they are cropped.
  augment = config.augment
  resized = augment.extra.as_real and (augment.resize.max or dataset.resize)
  kept = slice(2 if resized else 0, 3)
  shape = source.images.shape[1:]
  if shape[kept] != dataset.image_shape[kept]:
    raise error(
      f'has images of shape {shape}, but the real ones have '
      f'{dataset.image_shape} after their transforms'
    )
  if source.labels.max() >= dataset.num_classes:
    raise error(
      f'has labels up to {source.labels.max()}; the {dataset.num_classes} '
      f'classes are 0 … {dataset.num_classes - 1}'
    )
  return source


def train_batches(
  streams: Sequence[Stream],
  *,
  image_shape: tuple[int, int, int],
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
    image_shape: [H, W, ch] of a transformed image.
    seed: seed of the order and the augmentation.
    start_step: number of batches to skip; they are not read.
    process_index: index of this process, and so of its part of each batch.
    process_count: number of processes; divides every stream's batch size.
    workers: number of worker processes; 0: threads of this process.

  Yields:
    {'image': [b, H, W, ch], 'label': [b] int32}, b = sum of the streams' batch
    sizes over `process_count`.

  Raises:
    UserError: an example cannot be read, or ends in another shape.
  """
  parts = []
  for number, stream in enumerate(streams):
    # The first stream keeps its order whatever is mixed into it.
    own_seed = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    ds = grain.MapDataset.source(_Readable(stream.source, 'training example'))
    ds = ds.seed(seed if number == 0 else int(own_seed)).shuffle().repeat()
    ds = ds.random_map(_Augment(stream.transforms, image_shape))
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
    batches = zipped.map(_concatenate)
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

  Args:
    source: examples to evaluate.
    batch_size: examples per batch over all processes; a multiple of their
      number.
    process_index: see `train_batches`.
    process_count: see `train_batches`.
    workers: see `train_batches`.

  Yields:
    {'image', 'label', 'id' [b] int32, 'mask' [b] bool}; the mask is False for
    padding. Every process yields the same number of batches.

  Raises:
    UserError: an example cannot be read.
  """
  readable = _Readable(source, 'example')
  length = -(-len(source) // batch_size) * batch_size

  def read(index: int) -> views.Example:
    is_real = index < len(source)
    example = readable[index if is_real else 0]
    return {
      'image': example['image'],
      'label': example['label'],
      'id': np.int32(index),
      'mask': np.bool_(is_real),
    }

  ds = grain.MapDataset.range(length).map(read)
  ds = ds[process_index::process_count].batch(batch_size // process_count)
  return workers_lib.iterate(ds, workers)


# Errors that decoders raise for bytes that are not a whole image.
_UNREADABLE = (EOFError, OSError, SyntaxError, ValueError, struct.error)


class _Readable:
  """A source that adds indices, and names an example that cannot be read."""

  def __init__(self, source: views.Source, kind: str):
    self._source = source
    self._kind = kind

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> views.Example:
    try:
      return {**self._source[index], 'index': np.int64(index)}
    except _UNREADABLE as error:
      text = ' '.join(f'{type(error).__name__}: {error}'.split())
      raise errors.UserError(
        f'{self._kind} {index} cannot be read ({text})'
      ) from error


class _Augment(grain.transforms.RandomMap):
  """Applies transforms in order, with one random generator per example."""

  def __init__(
    self,
    transforms: Sequence[transforms_lib.Transform],
    image_shape: tuple[int, int, int],
  ):
    self._transforms = transforms
    self._shape = image_shape

  def random_map(self, element, rng: np.random.Generator):
    """Applies the transforms; Grain seeds `rng` by the position."""
    image = element['image']
    try:
      for transform in self._transforms:
        image = transform(image, rng)
    except pillow.TooLargeError as error:
      raise errors.UserError(
        f'training example {element["index"]} {error}'
      ) from None
    if image.shape != self._shape:
      raise errors.UserError(
        f'training example {element["index"]} has shape '
        f'{element["image"].shape}, which becomes {image.shape}, not '
        f'{self._shape}; set dataset.image_size or augment.resize, or prepare '
        'images of one size'
      )
    return {'image': image, 'label': element['label']}


def _concatenate(batches: tuple[workers_lib.Batch, ...]) -> workers_lib.Batch:
  return {
    name: np.concatenate([batch[name] for batch in batches])
    for name in batches[0]
  }
