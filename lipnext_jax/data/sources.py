"""Datasets as random-access sources: an index in, one example out.

An example is {'image': [H, W, ch] uint8 or float32 in [0, 1], 'label': int32}.
Each set is `config.dataset` → `Dataset`; `SOURCES` lists them by name.
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple
from typing import Protocol

import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import image_sets
from lipnext_jax.data import npz
from lipnext_jax.data import official
from lipnext_jax.data import transforms

FINAL_SPLITS = ('test', 'validation')

Example = dict[str, np.ndarray | np.generic]


class Source(Protocol):
  """Random access to examples, as Grain wants it."""

  def __len__(self) -> int:
    """Returns the number of examples."""
    ...

  def __getitem__(self, index: int) -> Example:
    """Returns the example at `index`."""
    ...


class Dataset(NamedTuple):
  """A dataset's splits and the facts a model needs."""

  image_shape: tuple[int, int, int]  # Of a training example, augmented.
  num_classes: int
  train: Source  # For training: its images may vary in size.
  validation: Source | None  # Held out of the training split, or None.
  test: Source
  # The training examples as evaluation would see them, if that differs: at
  # `image_shape`, not augmented.
  plain_train: Source | None = None
  # What shorter sides are scaled to before a crop; 0: images have one size.
  resize: int = 0
  class_names: tuple[str, ...] = ()  # By label; empty: they have none.
  notes: tuple[str, ...] = ()  # What a user should know of how it was read.

  @property
  def train_to_evaluate(self) -> Source:
    """The training examples at `image_shape`."""
    return self.train if self.plain_train is None else self.plain_train


class DatasetInfo(NamedTuple):
  """The facts about a dataset that a program is compiled from."""

  image_shape: tuple[int, int, int]  # Of a training example, augmented.
  image_dtype: np.dtype  # uint8, or float32 in [0, 1].
  num_classes: int
  train_examples: int  # Without what is held out.


class ArraySource:
  """Examples that fit into memory.

  >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 4]))
  >>> len(source), int(source[1]['label'])
  (2, 4)
  """

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    """Images [n, H, W, ch] uint8 or float32 in [0, 1], labels [n] int."""
    self._images = images
    self._labels = labels.astype(np.int32)

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> Example:
    return {'image': self._images[index], 'label': self._labels[index]}


class Subset:
  """Some examples of another source, in a given order.

  >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 4]))
  >>> int(Subset(source, [1])[0]['label'])
  4
  """

  def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
    self._source = source
    self._indices = np.asarray(indices)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Example:
    return self._source[int(self._indices[index])]

  def names(self) -> list[str]:
    """Returns the names of the chosen examples; see `names_of`."""
    names = names_of(self._source)
    return [names[i] for i in self._indices] if names else []


class Resized:
  """A source whose images are resized, then cropped in the middle.

  >>> source = ArraySource(np.zeros((1, 8, 6, 3), np.uint8), np.array([3]))
  >>> Resized(source, resize=5, size=4)[0]['image'].shape
  (4, 4, 3)
  """

  def __init__(self, source: Source, resize: int, size: int):
    """Takes the arguments of `transforms.resize_center_crop`."""
    self._source, self._resize, self._size = source, resize, size

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    example = self._source[index]
    image = transforms.resize_center_crop(
      np.asarray(example['image']), self._resize, self._size
    )
    return {**example, 'image': image}

  def names(self) -> list[str]:
    """Returns the names of the examples; see `names_of`."""
    return names_of(self._source)


class SyntheticSource:
  """Random uint8 images of any shape, a pure function of (seed, index).

  The label is the class whose (fixed, random) pattern was mixed into the
  image, so that a model can learn it.

  >>> SyntheticSource(4, (8, 8, 3), 10, seed=0)[2]['image'].shape
  (8, 8, 3)
  """

  def __init__(
    self,
    length: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
  ):
    self._length = length
    self._shape = image_shape
    self._num_classes = num_classes
    self._seed = seed

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Example:
    label = index % self._num_classes
    pattern = np.random.default_rng((0, label))
    noise = np.random.default_rng((1, self._seed, index))
    image = pattern.random(self._shape) + noise.random(self._shape)
    return {
      'image': (image * 127.5).astype(np.uint8),
      'label': np.int32(label),
    }


def names_of(source: Source) -> list[str]:
  """Returns the file or record name of every example; [] if there are none.

  >>> names_of(ArraySource(np.zeros((1, 8, 8, 1)), np.zeros(1)))
  []
  """
  find = getattr(source, 'names', None)
  return find() if find else []


def split_classes(
  labels: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples at random, every class in the same proportion.

  Args:
    labels: [n] int.
    share: of the second part; a class of two or more is in both parts.
    seed: of the draw.

  Returns:
    The positions of the two parts, ascending.

  >>> [part.tolist() for part in split_classes(np.array([0, 0, 1, 1]), 0.2, 0)]
  [[1, 3], [0, 2]]
  """
  rng, is_held = np.random.default_rng(seed), np.zeros(len(labels), bool)
  for c in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == c))
    count = min(max(1, round(share * len(members))), len(members) - 1)
    is_held[members[:count]] = True
  return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def load_dataset(c: ml_collections.ConfigDict) -> Dataset:
  """Loads the dataset of `config.dataset`; holds its validation part out.

  Raises:
    ConfigError: missing or malformed data, or a holdout of everything.
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
  # The same examples whatever the seed of the run.
  order = np.random.default_rng(0).permutation(available)
  kept, held = np.sort(order[holdout:]), np.sort(order[:holdout])
  plain = dataset.plain_train
  return dataset._replace(
    train=Subset(dataset.train, kept),
    validation=Subset(dataset.train_to_evaluate, held),
    plain_train=None if plain is None else Subset(plain, kept),
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
  """Returns the facts about `config.dataset`; official sets need not be there.

  >>> from lipnext_jax import config as config_lib
  >>> c = config_lib.default_config().dataset
  >>> c.name = 'imagenet'
  >>> describe(c).image_shape, describe(c).train_examples
  ((224, 224, 3), 1281167)
  """
  if c.name not in official.SETS:
    return info_of(load_dataset(c))
  found = official.SETS[c.name]
  size = c.image_size or IMAGE_SIZE
  return DatasetInfo(
    image_shape=found.image_shape or (size, size, 3),
    image_dtype=np.dtype(np.uint8),
    num_classes=found.num_classes,
    train_examples=found.splits['train'] - c.holdout,
  )


def final_split(dataset: Dataset, name: str) -> Source:
  """Returns the split that the final numbers are about, by its name."""
  if name == 'validation' and dataset.validation is not None:
    return dataset.validation
  return dataset.test


def monitor_split(dataset: Dataset, max_train_examples: int) -> Source:
  """Returns what is evaluated during training: never the test split.

  That is the validation part if there is one, else some examples of the
  training split (without augmentation). They are the same in every run, and
  spread over the split, which may lie on disk sorted by class.
  """
  if dataset.validation is not None:
    return dataset.validation
  source = dataset.train_to_evaluate
  order = np.random.default_rng(0).permutation(len(source))
  return Subset(source, np.sort(order[:max_train_examples]))


def _digits(config: ml_collections.ConfigDict) -> Dataset:
  """Loads scikit-learn's 1797 handwritten digits, 8×8 grey, pixels/16.

  The split: train_test_split(arange(1797), test_size=360, stratify=target,
  random_state=0), so 1437 for training and 360 for the test.
  """
  del config  # Unused: nothing to choose.
  from sklearn import datasets  # Slow to import, and needed here only.
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
    train=ArraySource(images[train], digits.target[train]),
    validation=None,
    test=ArraySource(images[test], digits.target[test]),
  )


def _synthetic(config: ml_collections.ConfigDict) -> Dataset:
  """Makes random images for benchmarks and dry runs."""
  c = config.synthetic
  shape = (c.image_size, c.image_size, c.channels)
  return Dataset(
    image_shape=shape,
    num_classes=c.num_classes,
    train=SyntheticSource(c.train_examples, shape, c.num_classes, seed=0),
    validation=None,
    test=SyntheticSource(c.test_examples, shape, c.num_classes, seed=1),
  )


def _npz(config: ml_collections.ConfigDict) -> Dataset:
  """Opens your own arrays: train and test below data_dir, see `npz`."""

  def error(problem: str) -> errors.ConfigError:
    return errors.ConfigError(
      'dataset.data_dir',
      config.data_dir,
      problem,
      'it needs train.npz and test.npz, each with `image` [n, H, W, ch] uint8 '
      'and `label` [n] int',
    )

  data_dir = os.path.expanduser(config.data_dir)
  if not os.path.isdir(data_dir):
    raise error('is no directory')
  splits = []
  for name in ('train', 'test'):
    path = npz.find(data_dir, name)
    if not os.path.exists(path):
      raise error(f'holds no {name}.npz')
    try:
      splits.append(npz.NpzSource(path))
    except ValueError as problem:
      raise error(f'holds {os.path.basename(path)}, which {problem}') from None
  train, test = splits
  if train.images.shape[1:] != test.images.shape[1:]:
    raise error(
      f'holds train images of shape {train.images.shape[1:]} but test images '
      f'of {test.images.shape[1:]}'
    )
  num_classes = int(max(train.labels.max(), test.labels.max())) + 1
  return Dataset(
    image_shape=train.images.shape[1:],
    num_classes=max(num_classes, 2),
    train=train,
    validation=None,
    test=test,
  )


# Sets whose images may vary in size; dataset.image_size and .resize are theirs.
VARYING = ('imagenet', 'imagenet400', 'folder', 'tfds', 'hf')
# Sets whose files, not this package, say what their classes and splits are.
ANY = ('folder', 'tfds', 'hf')
IMAGE_SIZE = 224  # Side of the crops, in pixels, where none is chosen.


def _image_set(config: ml_collections.ConfigDict) -> Dataset:
  """Opens a set on disk; what it does not say follows from the config.

  A set without a test split is split here. Images of many sizes are scaled to
  `dataset.resize` (0: `dataset.image_size`), and `dataset.image_size` pixels
  are cut out: at random to train, in the middle to evaluate.
  """
  splits = image_sets.open_set(config)
  train, test, notes = splits.train, splits.test, splits.notes
  if test is None:
    kept, held = split_classes(
      train.read_labels(), config.test_share, config.split_seed
    )
    train, test = Subset(train, kept), Subset(train, held)
    notes += (
      f'no test split: {len(test)} of {len(kept) + len(held)} images are held '
      f'out as one, drawn from every class (dataset.test_share='
      f'{config.test_share:g}, dataset.split_seed={config.split_seed})',
    )
  facts: dict[str, Any] = {
    'num_classes': len(splits.class_names),
    'class_names': tuple(map(errors.printable, splits.class_names)),
    'notes': notes,
  }
  if splits.image_shape is not None and not config.image_size:
    return Dataset(
      splits.image_shape, train=train, validation=None, test=test, **facts
    )
  size = config.image_size or IMAGE_SIZE
  resize = config.resize or size
  return Dataset(
    image_shape=(size, size, splits.channels),
    train=train,
    validation=None,
    test=Resized(test, resize, size),
    plain_train=Resized(train, resize, size),
    resize=resize,
    **facts,
  )


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Dataset]] = {
  'digits': _digits,
  'synthetic': _synthetic,
  'npz': _npz,
  **dict.fromkeys((*official.SETS, *VARYING), _image_set),
}
