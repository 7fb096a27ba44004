"""Facts about the official sets: sizes, classes, and where TFDS puts them.

Names, versions and features are those of TFDS where it has the set, so that
its builders read what `prepare` writes and the other way round.
"""

from importlib import resources
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


class OfficialSet(NamedTuple):
  """What a complete set is."""

  name: str  # Of the folder in data_dir, and for `tfds.data_source`.
  version: str
  homepage: str
  image_shape: tuple[int, int, int] | None  # None: it varies.
  num_classes: int
  splits: dict[str, int]  # Split → number of examples.
  balanced: tuple[str, ...]  # Splits with equally many of every class.
  test_split: str  # The labelled one that results are reported on.
  key: str  # Feature that names an example.
  encoding: str | None = None  # TFDS's declared format of the images.
  other_labels: dict[str, int] = {}  # noqa: RUF012 (never changed)


# https://www.cs.toronto.edu/~kriz/cifar.html; classes in batches.meta's order.
CIFAR10 = OfficialSet(
  name='cifar10',
  version='3.0.2',
  homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
  image_shape=(32, 32, 3),
  num_classes=10,
  splits={'train': 50_000, 'test': 10_000},
  balanced=('train', 'test'),
  test_split='test',
  key='id',
)
CIFAR100 = CIFAR10._replace(
  name='cifar100', num_classes=100, other_labels={'coarse_label': 20}
)
# Its test split has no labels: results are reported on the validation split.
TINY_IMAGENET = OfficialSet(
  name='tiny_imagenet',
  version='1.0.0',
  homepage='http://cs231n.stanford.edu/',
  image_shape=(64, 64, 3),
  num_classes=200,
  splits={'train': 100_000, 'validation': 10_000},
  balanced=('train', 'validation'),
  test_split='validation',
  key='id',
)
IMAGENET = OfficialSet(
  name='imagenet2012',
  version='5.1.0',
  homepage='https://image-net.org/',
  image_shape=None,
  num_classes=1000,
  splits={'train': 1_281_167, 'validation': 50_000},
  balanced=('validation',),
  test_split='validation',
  key='file_name',
  encoding='jpeg',
)
SETS = {
  'cifar10': CIFAR10,
  'cifar100': CIFAR100,
  'tiny_imagenet': TINY_IMAGENET,
  'imagenet': IMAGENET,
}


def class_names(name: str) -> list[str]:
  """The official names, in the order of their labels.

  Args:
    name: 'cifar10', 'cifar100' or 'cifar100_coarse'; from the archives'
      batches.meta and meta.

  >>> class_names('cifar10')[0], len(class_names('cifar100'))
  ('airplane', 100)
  """
  lists = resources.files('lipnext_jax.data') / 'class_lists'
  return (lists / f'{name}.txt').read_text(encoding='utf-8').split()


def imagenet_wnids() -> list[str]:
  """The 1000 synsets in the order of their labels, which is alphabetical.

  >>> wnids = imagenet_wnids()
  >>> len(wnids), wnids[0], wnids == sorted(wnids)
  (1000, 'n01440764', True)
  """
  import tensorflow_datasets as tfds  # An extra; the facts do without it.

  path = tfds.core.tfds_path('datasets/imagenet2012/labels.txt')
  return path.read_text().split()


def imagenet_validation_wnids() -> list[str]:
  """The synsets of ILSVRC2012_val_00000001.JPEG and its followers.

  TFDS ships the ground truth of the devkit.

  >>> len(imagenet_validation_wnids())
  50000
  """
  import tensorflow_datasets as tfds

  path = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
  return path.read_text().split()


def build_features(
  official_set: OfficialSet, names: dict[str, list[str]]
) -> 'tfds.features.FeaturesDict':
  """The features of a set, as TFDS declares them.

  Args:
    official_set: the set.
    names: of each label feature, in the order of the labels.

  >>> names = {'label': class_names('cifar10')}
  >>> sorted(build_features(CIFAR10, names))
  ['id', 'image', 'label']
  """
  import tensorflow_datasets as tfds

  labels = {'label', *official_set.other_labels}
  return tfds.features.FeaturesDict(
    {
      official_set.key: tfds.features.Text(),
      'image': tfds.features.Image(
        shape=official_set.image_shape,
        dtype=np.uint8,
        encoding_format=official_set.encoding,
      ),
      **{
        name: tfds.features.ClassLabel(names=names[name])
        for name in sorted(labels)
      },
    }
  )
