"""Datasets by name: `load_dataset` opens the one that `config.dataset` names.

`SOURCES` maps every name to a function `config.dataset` → `Dataset`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
import os
import re
from typing import Any
from typing import NamedTuple

import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import folder
from lipnext_jax.data import official
from lipnext_jax.data import views

FINAL_SPLITS = ('test', 'validation')
# Sets whose images may vary in size: they read dataset.image_size and .resize.
VARYING = ('imagenet', 'imagenet400', 'folder', 'tfds', 'hf')
# Sets whose classes and splits are read from their files.
USER_SETS = ('folder', 'tfds', 'hf')
IMAGE_SIZE = 224  # Side of the crops in pixels if dataset.image_size is 0.
# Bytes of decoded training images that are kept in memory: CIFAR's are. With
# worker processes none are, as each would keep its own.
_CACHE = 2**28


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
    ConfigError: data are missing or malformed, nothing is left to train on, or
      a package is not installed.
    DataError: the set is malformed.
  """
  try:
    dataset = SOURCES[c.name](c)
  except ImportError as error:
    extra = 'hf' if c.name == 'hf' else 'data'
    raise errors.ConfigError(
      'dataset.name',
      c.name,
      f'needs a package that is not installed ({error.name})',
      f'install it: {errors.install_command(extra)}',
    ) from None
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
  is_part = c.name == 'imagenet400'
  found = official.SETS.get('imagenet' if is_part else c.name)
  if found is None:
    return info_of(load_dataset(c))
  size = c.image_size or IMAGE_SIZE
  classes = 400 if is_part else found.num_classes
  return DatasetInfo(
    image_shape=found.image_shape or (size, size, 3),
    image_dtype=np.dtype(np.uint8),
    num_classes=classes,
    train_examples=classes * found.splits['train'] // found.num_classes
    - c.holdout,
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


def _digits(_: ml_collections.ConfigDict) -> Dataset:
  """Loads scikit-learn's digits, pixels / 16: 1437 to train on, 360 to test."""
  from sklearn import datasets  # Slow to import.
  from sklearn import model_selection

  digits = datasets.load_digits()
  whole = views.ArraySource(
    (digits.images / 16).astype(np.float32)[..., None], digits.target
  )
  train, test = model_selection.train_test_split(
    np.arange(1797), test_size=360, stratify=whole.labels, random_state=0
  )
  return Dataset(
    (8, 8, 1), 10, views.View(whole, train), views.View(whole, test)
  )


def _synthetic(config: ml_collections.ConfigDict) -> Dataset:
  """Makes random images for benchmarks and dry runs."""
  c = config.synthetic
  shape = (c.image_size, c.image_size, c.channels)
  train, test = (
    views.SyntheticSource(count, shape, c.num_classes, seed)
    for seed, count in enumerate((c.train_examples, c.test_examples))
  )
  return Dataset(shape, c.num_classes, train, test)


def open_npz(field: str, path: str) -> views.NpzSource:
  """Opens the arrays at the path that a config field gives.

  Raises:
    ConfigError: the arrays are missing or malformed.
  """
  try:
    return views.NpzSource(os.path.expanduser(path))
  except ValueError as problem:
    raise errors.ConfigError(
      field,
      path,
      str(problem),
      'give a file with `image` [n, H, W, ch] uint8 and `label` [n] int',
    ) from None


def _npz(c: ml_collections.ConfigDict) -> Dataset:
  """Opens train.npz and test.npz, or the folders that they unzip to."""
  splits = []
  for name in ('train', 'test'):
    path = os.path.expanduser(os.path.join(c.data_dir, name))
    if os.path.exists(f'{path}.npz') or not os.path.isdir(path):
      path = f'{path}.npz'
    splits.append(open_npz('dataset.data_dir', path))
  train, test = splits
  if train.images.shape[1:] != test.images.shape[1:]:
    raise errors.ConfigError(
      'dataset.data_dir',
      c.data_dir,
      f'holds train images of shape {train.images.shape[1:]} but test images '
      f'of {test.images.shape[1:]}',
      'give them one shape',
    )
  num_classes = int(max(train.labels.max(), test.labels.max())) + 1
  return Dataset(train.images.shape[1:], max(num_classes, 2), train, test)


def _folder(c: ml_collections.ConfigDict) -> Dataset:
  """Opens a folder of images per class."""
  data_dir = _directory(
    c, 'that holds train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE'
  )
  train, test, names, notes = folder.open_folder(data_dir, c.skip_bad)
  dataset = _image_set(c, train, test, names, (None, None, 3), notes)
  files = '\0'.join(dataset.train.names()).encode('utf-8', 'surrogateescape')
  return dataset._replace(train_files=hashlib.sha256(files).hexdigest())


def _hf(c: ml_collections.ConfigDict) -> Dataset:
  """Opens a folder that `save_to_disk` of a Dataset or DatasetDict wrote."""
  from lipnext_jax.data import hf

  data_dir = _directory(c, 'that `save_to_disk` of Hugging Face datasets wrote')
  splits = hf.load(data_dir)
  split = _find_test(data_dir, [*splits])
  train = hf.HfSource(f'{data_dir}, train', splits['train'])
  test = hf.HfSource(f'{data_dir}, {split}', splits[split]) if split else None
  return _image_set(c, train, test, train.class_names, train.shape)


def _records(c: ml_collections.ConfigDict) -> Dataset:
  """Opens a set of records that `data.prepare` or TFDS wrote."""
  # It imports TensorFlow Datasets, which is an extra, and slow to import.
  from lipnext_jax.data import records

  data_dir = _directory(c, 'that prepared sets lie in')
  base = 'imagenet' if c.name == 'imagenet400' else c.name
  facts = official.SETS.get(base)
  if facts:
    name = facts.name
    remedy = (
      f'prepare it: python -m lipnext_jax.data.prepare {base} --source=… '
      f'--data_dir={data_dir}, with the files of '
      f'{facts.origin or facts.homepage}'
    )
  else:
    name = c.set_name
    remedy = (
      'set dataset.set_name to a set that TFDS prepared with '
      "file_format='array_record', e.g. 'mnist' or 'imagenette/160px-v2'"
    )
  directory = _newest_version(data_dir, name, remedy)
  train: Any = records.RecordSource(directory, 'train')
  names, shape = train.class_names, train.shape
  split = [*facts.splits][1] if facts else _find_test(directory, train.splits)
  test: Any = records.RecordSource(directory, split) if split else None
  if c.name == 'imagenet400':
    ids = official.imagenet400_ids()
    train, test = (views.select_classes(s, ids) for s in (train, test))
    names = [names[i] for i in ids]
  return _image_set(c, train, test, names, shape)


def _image_set(
  c: ml_collections.ConfigDict,
  train: Any,
  test: Any,
  class_names: Sequence[str],
  shape: tuple[int | None, int | None, int],
  notes: tuple[str, ...] = (),
) -> Dataset:
  """Makes a dataset of splits on disk; draws a test split if there is none."""
  if test is None:
    kept, held = views.split_classes(
      train.read_labels(), c.test_share, c.split_seed
    )
    train, test = views.View(train, kept), views.View(train, held)
    notes += (
      f'no test split: {len(test)} of {len(kept) + len(held)} images are held '
      f'out as one, drawn from every class (dataset.test_share='
      f'{c.test_share:g}, dataset.split_seed={c.split_seed})',
    )
  height, width, channels = shape
  resize = 0
  if height is None or width is None or c.image_size:
    height = width = c.image_size or IMAGE_SIZE
    resize = c.resize or height
    test = views.resized(test, resize, height)
  elif not c.workers and len(train) * height * width * channels <= _CACHE:
    train = views.Cached(train)
  return Dataset(
    image_shape=(height, width, channels),
    num_classes=len(class_names),
    train=train,
    test=test,
    resize=resize,
    class_names=tuple(map(errors.printable, class_names)),
    notes=notes,
  )


def _directory(c: ml_collections.ConfigDict, what: str) -> str:
  """Returns `dataset.data_dir`, which must exist."""
  data_dir = os.path.expanduser(c.data_dir)
  if not os.path.isdir(data_dir):
    raise errors.ConfigError(
      'dataset.data_dir',
      c.data_dir,
      'is not a directory',
      f'give the one {what}',
    )
  return data_dir


def _find_test(data_dir: str, splits: Sequence[str]) -> str | None:
  """Returns the name of the test split, or None; raises without 'train'."""
  if 'train' not in splits:
    raise errors.DataError(
      f'{data_dir}: has no split called train, only [{", ".join(splits)}]'
    )
  return next((name for name in folder.TEST_SPLITS if name in splits), None)


def _newest_version(data_dir: str, name: str, remedy: str) -> str:
  """Returns the folder of the newest version of a prepared set."""
  parent = os.path.join(data_dir, name)
  entries = os.listdir(parent) if os.path.isdir(parent) else []
  versions = [e for e in entries if re.fullmatch(r'\d+\.\d+\.\d+', e)]
  if not versions:
    unfinished = any(entry.startswith('incomplete.') for entry in entries)
    raise errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      f'holds no {"finished " if unfinished else ""}{name or "set"}',
      remedy,
    )
  newest = max(versions, key=lambda version: [*map(int, version.split('.'))])
  return os.path.join(parent, newest)


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Dataset]] = {
  'digits': _digits,
  'synthetic': _synthetic,
  'npz': _npz,
  **dict.fromkeys((*official.SETS, 'imagenet400', 'tfds'), _records),
  'folder': _folder,
  'hf': _hf,
}
