"""Datasets by name: `load_dataset` opens the one that `config.dataset` names.

`SOURCES` maps every name to a function `config.dataset` → `Dataset`.
"""

from collections.abc import Callable
import hashlib
import math
import os
from typing import NamedTuple

import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import image_sets
from lipnext_jax.data import npz
from lipnext_jax.data import official
from lipnext_jax.data import views

FINAL_SPLITS = ('test', 'validation')


class Dataset(NamedTuple):
  """The splits of a dataset, and the facts that a model needs."""

  image_shape: tuple[int, int, int]  # [H, W, ch] that the model sees.
  num_classes: int
  train: views.Source  # Before augmentation; sizes vary if `resize` is set.
  test: views.Source
  validation: views.Source | None = None  # Held out of the training split.
  resize: int = 0  # Shorter side in pixels before a crop; 0: no resizing.
  class_names: tuple[str, ...] = ()  # By label; empty if classes have no names.
  notes: tuple[str, ...] = ()  # Messages to the user about how it was read.
  train_files: str = ''  # Hash of the names of the training files; '': none.

  @property
  def train_to_evaluate(self) -> views.Source:
    """The training examples at `image_shape`, without augmentation."""
    if not self.resize:
      return self.train
    return views.resized(self.train, self.resize, self.image_shape[0])


class DatasetInfo(NamedTuple):
  """The facts about a dataset that a program is compiled from."""

  image_shape: tuple[int, int, int]  # [H, W, ch] that the model sees.
  image_dtype: np.dtype  # uint8, or float32 in [0, 1].
  num_classes: int
  train_examples: int  # Without those held out for validation.


def load_dataset(c: ml_collections.ConfigDict) -> Dataset:
  """Loads the dataset of `config.dataset`, and holds out its validation part.

  Raises:
    ConfigError: data are missing or malformed, or nothing is left to train on.
  """
  dataset = SOURCES[c.name](c)
  holdout, available = c.holdout, len(dataset.train)
  if not holdout:
    return dataset
  if holdout >= available:
    raise errors.ConfigError(
      'dataset.holdout',
      holdout,
      f'leaves nothing of the {available} training examples',
      'choose fewer',
    )
  # A fixed seed: runs of every seed hold out the same examples.
  order = np.random.default_rng(0).permutation(available)
  kept, held = np.sort(order[holdout:]), np.sort(order[:holdout])
  return dataset._replace(
    train=views.View(dataset.train, kept),
    validation=views.View(dataset.train_to_evaluate, held),
  )


def info_of(dataset: Dataset) -> DatasetInfo:
  """Returns the facts about a loaded dataset.

  >>> info_of(_digits(ml_collections.ConfigDict())).image_dtype
  dtype('float32')
  """
  return DatasetInfo(
    image_shape=dataset.image_shape,
    image_dtype=np.asarray(dataset.train[0]['image']).dtype,
    num_classes=dataset.num_classes,
    train_examples=len(dataset.train),
  )


def describe(c: ml_collections.ConfigDict) -> DatasetInfo:
  """Returns the facts about `config.dataset`, of official sets without data.

  The number of training examples of ImageNet-400 is an estimate.

  >>> from lipnext_jax import config as config_lib
  >>> c = config_lib.default_config().dataset
  >>> c.name = 'imagenet'
  >>> describe(c).image_shape, describe(c).train_examples
  ((224, 224, 3), 1281167)
  """
  found = official.SETS.get(c.name)
  if c.name == 'imagenet400':
    share, whole = 400, official.IMAGENET
    count = share * whole.splits['train'] // whole.num_classes
    found = whole._replace(num_classes=share, splits={'train': count})
  if found is None:
    return info_of(load_dataset(c))
  size = c.image_size or IMAGE_SIZE
  return DatasetInfo(
    image_shape=found.image_shape or (size, size, 3),
    image_dtype=np.dtype(np.uint8),
    num_classes=found.num_classes,
    train_examples=found.splits['train'] - c.holdout,
  )


def final_split(dataset: Dataset, name: str) -> views.Source:
  """Returns the split that the final evaluation certifies, by its name."""
  if name == 'validation' and dataset.validation is not None:
    return dataset.validation
  return dataset.test


def monitor_split(dataset: Dataset, max_train_examples: int) -> views.Source:
  """Returns the examples to evaluate during training, never the test split.

  They are the validation part if there is one, else training examples without
  augmentation: the same ones in every run, drawn from the whole split, which
  may be sorted by class.
  """
  if dataset.validation is not None:
    return dataset.validation
  source = dataset.train_to_evaluate
  order = np.random.default_rng(0).permutation(len(source))
  return views.View(source, np.sort(order[:max_train_examples]))


def _digits(config: ml_collections.ConfigDict) -> Dataset:
  """Loads scikit-learn's 1797 handwritten digits: 8×8, grey, pixels / 16.

  A fixed stratified split has 1437 training and 360 test examples.
  """
  del config  # Unused.
  from sklearn import datasets  # Slow to import.
  from sklearn import model_selection

  digits = datasets.load_digits()
  images = (digits.images / 16).astype(np.float32)[..., None]
  train, test = model_selection.train_test_split(
    np.arange(len(images)),
    test_size=360,
    stratify=digits.target,
    random_state=0,
  )
  return Dataset(
    image_shape=(8, 8, 1),
    num_classes=10,
    train=views.ArraySource(images[train], digits.target[train]),
    test=views.ArraySource(images[test], digits.target[test]),
  )


def _synthetic(config: ml_collections.ConfigDict) -> Dataset:
  """Makes random images for benchmarks and dry runs."""
  c = config.synthetic
  shape = (c.image_size, c.image_size, c.channels)
  make = views.SyntheticSource
  return Dataset(
    image_shape=shape,
    num_classes=c.num_classes,
    train=make(c.train_examples, shape, c.num_classes, seed=0),
    test=make(c.test_examples, shape, c.num_classes, seed=1),
  )


def open_npz(field: str, path: str) -> npz.NpzSource:
  """Opens the arrays at the path that a config field gives.

  Raises:
    ConfigError: the arrays are missing or malformed.
  """
  try:
    return npz.NpzSource(os.path.expanduser(path))
  except ValueError as problem:
    raise errors.ConfigError(
      field,
      path,
      str(problem),
      'give a file with `image` [n, H, W, ch] uint8 and `label` [n] int',
    ) from None


def _npz(config: ml_collections.ConfigDict) -> Dataset:
  """Opens the arrays `train` and `test` in `dataset.data_dir`; see `npz`."""
  train, test = (
    open_npz('dataset.data_dir', npz.find(config.data_dir, name))
    for name in ('train', 'test')
  )
  if train.images.shape[1:] != test.images.shape[1:]:
    raise errors.ConfigError(
      'dataset.data_dir',
      config.data_dir,
      f'holds train images of shape {train.images.shape[1:]} but test images '
      f'of {test.images.shape[1:]}',
      'give them one shape',
    )
  num_classes = int(max(train.labels.max(), test.labels.max())) + 1
  return Dataset(
    image_shape=train.images.shape[1:],
    num_classes=max(num_classes, 2),
    train=train,
    test=test,
  )


# Sets whose images may vary in size: they read dataset.image_size and .resize.
VARYING = ('imagenet', 'imagenet400', 'folder', 'tfds', 'hf')
# Sets whose classes and splits are read from their files.
USER_SETS = ('folder', 'tfds', 'hf')
# Bytes of decoded training images that are kept in memory: CIFAR's are. With
# worker processes none are, as each would keep its own.
_CACHE = 2**28
IMAGE_SIZE = 224  # Side of the crops in pixels if dataset.image_size is 0.


def _image_set(config: ml_collections.ConfigDict) -> Dataset:
  """Opens a set of images on disk.

  A share of each class becomes the test split of a set without one. Images of
  many sizes are scaled so that the shorter side is `dataset.resize` (0:
  `dataset.image_size`), and cropped to `dataset.image_size` pixels: at random
  for training, in the middle for evaluation.
  """
  splits = image_sets.open_set(config)
  train, test, notes = splits.train, splits.test, splits.notes
  if test is None:
    kept, held = views.split_classes(
      train.read_labels(), config.test_share, config.split_seed
    )
    train, test = views.View(train, kept), views.View(train, held)
    notes += (
      f'no test split: {len(test)} of {len(kept) + len(held)} images are held '
      f'out as one, drawn from every class (dataset.test_share='
      f'{config.test_share:g}, dataset.split_seed={config.split_seed})',
    )
  image_shape, resize = splits.image_shape, 0
  if image_shape is None or config.image_size:
    size = config.image_size or IMAGE_SIZE
    resize = config.resize or size
    image_shape = (size, size, splits.channels)
    test = views.resized(test, resize, size)
  elif not config.workers and len(train) * math.prod(image_shape) <= _CACHE:
    train = views.Cached(train)
  train_files = ''
  if config.name == 'folder':
    names = '\0'.join(train.names()).encode('utf-8', 'surrogateescape')
    train_files = hashlib.sha256(names).hexdigest()
  return Dataset(
    image_shape=image_shape,
    num_classes=len(splits.class_names),
    train=train,
    test=test,
    resize=resize,
    class_names=tuple(map(errors.printable, splits.class_names)),
    notes=notes,
    train_files=train_files,
  )


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Dataset]] = {
  'digits': _digits,
  'synthetic': _synthetic,
  'npz': _npz,
  **dict.fromkeys((*official.SETS, *VARYING), _image_set),
}
