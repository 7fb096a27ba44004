"""Facts about the official sets: files, sizes, classes, and TFDS's names.

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
  """A set when it is complete."""

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


class Archive(NamedTuple):
  """An official file: what its bytes must be."""

  size: int | None  # In bytes; None: not published.
  checksum: str  # In hexadecimal digits.
  algorithm: str = 'sha256'  # 'md5' where the publisher gives no other.


# The Python archives: https://www.cs.toronto.edu/~kriz/cifar.html (MD5) and
# Keras (SHA-256); the binary ones and ImageNet's tars: TFDS's checksums;
# Tiny-ImageNet and the devkit, as torchvision and others have them.
ARCHIVES = {
  'cifar-10-python.tar.gz': Archive(
    170_498_071,
    '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
  ),
  'cifar-10-binary.tar.gz': Archive(
    170_052_171,
    'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
  ),
  'cifar-100-python.tar.gz': Archive(
    169_001_437,
    '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
  ),
  'cifar-100-binary.tar.gz': Archive(
    168_513_733,
    '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
  ),
  'tiny-imagenet-200.zip': Archive(
    248_100_043, '90528d7ca1a48142e341f4ef8d21d0de', 'md5'
  ),
  'ILSVRC2012_img_train.tar': Archive(
    147_897_477_120,
    'b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb',
  ),
  'ILSVRC2012_img_val.tar': Archive(
    6_744_924_160,
    'c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0',
  ),
  'ILSVRC2012_devkit_t12.tar.gz': Archive(
    None, 'fa75699e90414af021442c21a62c3abf', 'md5'
  ),
}


def class_names(name: str) -> list[str]:
  """Returns the official names of a set's classes, in the order of labels.

  Args:
    name: 'cifar10', 'cifar100' or 'cifar100_coarse'; from the archives'
      batches.meta and meta.

  >>> class_names('cifar10')[0], len(class_names('cifar100'))
  ('airplane', 100)
  """
  lists = resources.files('lipnext_jax.data') / 'class_lists'
  return (lists / f'{name}.txt').read_text(encoding='utf-8').split()


def imagenet_wnids() -> list[str]:
  """Returns the 1000 synsets in the order of their labels: alphabetical.

  >>> wnids = imagenet_wnids()
  >>> len(wnids), wnids[0], wnids == sorted(wnids)
  (1000, 'n01440764', True)
  """
  import tensorflow_datasets as tfds  # An extra; the facts do without it.

  path = tfds.core.tfds_path('datasets/imagenet2012/labels.txt')
  return path.read_text().split()


def imagenet_validation_wnids() -> list[str]:
  """Returns the synsets of ILSVRC2012_val_00000001.JPEG and its followers.

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
  """Builds the features of a set, as TFDS declares them.

  Args:
    official_set: the set.
    names: label feature → names of its classes, in the order of the labels.

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
