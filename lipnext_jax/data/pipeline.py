"""Turns sources into batches with Grain: shuffled to train, exact to evaluate.

The training stream is a pure function of (seed, step): order and augmentation
do not depend on the number of workers, and any step can be resumed at.
"""

from collections.abc import Generator
from collections.abc import Sequence
import struct
from typing import NamedTuple

import grain
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import mixture
from lipnext_jax.data import pillow
from lipnext_jax.data import sources
from lipnext_jax.data import transforms as transforms_lib
from lipnext_jax.data import views
from lipnext_jax.data import workers as workers_lib

Batch = dict[str, np.ndarray]


class Stream(NamedTuple):
  """Examples that are shuffled, augmented and batched together."""

  source: views.Source
  transforms: Sequence[transforms_lib.Transform] = ()
  batch_size: int = 1  # Over all processes.


def build_streams(
  config: ml_collections.ConfigDict, dataset: sources.Dataset
) -> list[Stream]:
  """Returns the stream of real examples and, if wanted, the mixed-in ones.

  `config.batch_size` counts real examples; `dataset.extra_ratio` times as many
  come in addition.

  Raises:
    ConfigError: transforms or mixed-in images that do not fit the dataset.
    UserError: a first example that cannot be read.
  """
  shape, resize, augment = dataset.image_shape, dataset.resize, config.augment
  first = _Readable(dataset.train, 'training example')[0]['image']
  transforms_lib.check_image(augment, np.asarray(first), shape, resize)
  real = transforms_lib.build_transforms(augment, shape, resize)
  streams = [Stream(dataset.train, real, config.batch_size)]
  extra = mixture.load_extra(config, dataset)
  if extra is not None:
    mixed_in = transforms_lib.build_extra_transforms(augment, shape, resize)
    size = extra.ratio * config.batch_size
    streams.append(Stream(extra.source, mixed_in, size))
  return streams


def train_batches(
  streams: Sequence[Stream],
  *,
  image_shape: tuple[int, int, int],
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
) -> Generator[Batch, None, None]:
  """Yields training batches of this process without end, from `start_step` on.

  Every epoch of a stream is a fresh permutation; batches run across epochs, so
  that no example is dropped. Each process gets the same share of every stream;
  within its batch, the streams follow each other.

  Args:
    streams: the real examples, and what is mixed into them.
    image_shape: [H, W, ch] that the transforms end in.
    seed: of the order and the augmentation.
    start_step: batches to skip, without reading them.
    process_index: which part of each batch to give.
    process_count: number of parts; divides every stream's batch size.
    workers: worker processes; 0: threads of this one.

  Yields:
    {'image': [b, H, W, ch], 'label': [b] int32}, b = sum of the streams' batch
    sizes over `process_count`.

  Raises:
    UserError: an example that cannot be read or has another shape.
  """
  parts = []
  for number, stream in enumerate(streams):
    # The first stream keeps its order whatever is mixed into it.
    own_seed = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    ds = grain.MapDataset.source(_Readable(stream.source, 'training example'))
    ds = ds.seed(seed if number == 0 else int(own_seed)).shuffle().repeat()
    ds = ds.random_map(_Augment(stream.transforms, image_shape))
    # After the random map: every process draws the same randomness per
    # position.
    ds = ds[process_index::process_count]
    # Endless: nothing is dropped, but a rounded-up length would overflow.
    ds = ds.batch(stream.batch_size // process_count, drop_remainder=True)
    parts.append(ds[start_step:])
  batches = parts[0]
  if len(parts) > 1:
    endless = min(len(part) for part in parts)  # Nearly 2⁶³; zip wants one.
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
) -> Generator[Batch, None, None]:
  """Yields every example once, in order; the last batch is padded and masked.

  Args:
    source: examples to evaluate.
    batch_size: over all processes; a multiple of their number.
    process_index: which part of each batch to give.
    process_count: number of parts.
    workers: worker processes; 0: threads of this one.

  Yields:
    {'image', 'label', 'id' [b] int32, 'mask' [b] bool}; padding has mask
    False. All processes yield equally often.

  Raises:
    UserError: an example that cannot be read.
  """
  padded = _Padded(_Readable(source, 'example'), batch_size)
  ds = grain.MapDataset.source(padded)
  ds = ds[process_index::process_count].batch(batch_size // process_count)
  return workers_lib.iterate(ds, workers)


# What decoders raise for bytes that are no (whole) image of theirs.
_UNREADABLE = (EOFError, OSError, SyntaxError, ValueError, struct.error)


class _Readable:
  """A source whose unreadable examples are named to the user."""

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
  """Applies the transforms in turn, from one generator per example."""

  def __init__(
    self,
    transforms: Sequence[transforms_lib.Transform],
    image_shape: tuple[int, int, int],
  ):
    self._transforms = transforms
    self._shape = image_shape

  def random_map(self, element, rng: np.random.Generator):
    """Applies the transforms, with an `rng` that the position seeds."""
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


class _Padded:
  """A source with ids and a mask, padded to a multiple of the batch."""

  def __init__(self, source: views.Source, batch_size: int):
    self._source = source
    self._length = -(-len(source) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> views.Example:
    real = index < len(self._source)
    example = self._source[index if real else 0]
    return {
      'image': example['image'],
      'label': example['label'],
      'id': np.int32(index),
      'mask': np.bool_(real),
    }


def _concatenate(batches: tuple[Batch, ...]) -> Batch:
  return {
    name: np.concatenate([batch[name] for batch in batches])
    for name in batches[0]
  }
