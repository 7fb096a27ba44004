"""Facts about the official sets: files, checksums, sizes and classes.

Sets that TFDS has, too, get its names, versions and features: TFDS reads what
`prepare` writes, and this package reads what TFDS prepares.
"""

from importlib import resources
from typing import NamedTuple

import numpy as np


class OfficialSet(NamedTuple):
  """The facts about a complete set."""

  name: str  # TFDS's name, and that of the folder in data_dir.
  version: str
  homepage: str
  image_shape: tuple[int, int, int] | None  # None if it varies.
  num_classes: int
  # Number of examples of 'train' and the split that results are reported for.
  splits: dict[str, int]
  key: str  # Feature that names an example; '' if there is none.
  origin: str = ''  # Where to get the files; '': the homepage.
  encoding: str | None = None  # Image format that TFDS declares.


_CIFAR10 = OfficialSet(
  name='cifar10',
  version='3.0.2',
  homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
  image_shape=(32, 32, 3),
  num_classes=10,
  splits={'train': 50_000, 'test': 10_000},
  key='id',
)
_MNIST = OfficialSet(
  name='mnist',
  version='3.0.1',
  homepage='http://yann.lecun.com/exdb/mnist/',
  image_shape=(28, 28, 1),
  num_classes=10,
  splits={'train': 60_000, 'test': 10_000},
  key='',
  origin='https://storage.googleapis.com/cvdf-datasets/mnist/ (a mirror of '
  'http://yann.lecun.com/exdb/mnist/)',
)
SETS = {
  'cifar10': _CIFAR10,
  'cifar100': _CIFAR10._replace(name='cifar100', num_classes=100),
  # The labels of its test split were never published.
  'tiny_imagenet': OfficialSet(
    name='tiny_imagenet',
    version='1.0.0',
    homepage='http://cs231n.stanford.edu/',
    image_shape=(64, 64, 3),
    num_classes=200,
    splits={'train': 100_000, 'validation': 10_000},
    key='id',
  ),
  'imagenet': OfficialSet(
    name='imagenet2012',
    version='5.1.0',
    homepage='https://image-net.org/',
    image_shape=None,
    num_classes=1000,
    splits={'train': 1_281_167, 'validation': 50_000},
    key='file_name',
    encoding='jpeg',
  ),
  'mnist': _MNIST,
  'fashion_mnist': _MNIST._replace(
    name='fashion_mnist',
    homepage='https://github.com/zalandoresearch/fashion-mnist',
    origin='https://github.com/zalandoresearch/fashion-mnist or the Debian '
    'package dataset-fashion-mnist '
    '(--source=/usr/share/datasets/fashion-mnist)',
  ),
  'kmnist': _MNIST._replace(
    name='kmnist', homepage='http://codh.rois.ac.jp/kmnist/', origin=''
  ),
}


# Official archive → size in bytes and checksum. The checksums of CIFAR's Python
# archives are those of Keras; TFDS has those of the binary archives and of
# ImageNet's tars, several projects that of Tiny-ImageNet.
ARCHIVES = {
  'cifar-10-python.tar.gz': (
    170_498_071,
    'sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
  ),
  'cifar-10-binary.tar.gz': (
    170_052_171,
    'sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
  ),
  'cifar-100-python.tar.gz': (
    169_001_437,
    'sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
  ),
  'cifar-100-binary.tar.gz': (
    168_513_733,
    'sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
  ),
  'tiny-imagenet-200.zip': (
    248_100_043,
    'md5:90528d7ca1a48142e341f4ef8d21d0de',  # The publisher gives no other.
  ),
  'ILSVRC2012_img_train.tar': (
    147_897_477_120,
    'sha256:b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb',
  ),
  'ILSVRC2012_img_val.tar': (
    6_744_924_160,
    'sha256:c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0',
  ),
}


# The SHA-256 checksums of the four published .gz files of each set, and of what
# they contain, in hexadecimal digits. TFDS has those of the compressed files,
# and several projects those of MNIST's contents. The contents of Fashion-MNIST
# were read from Debian's files; with the published gzip headers, these have
# TFDS's checksums. Those of KMNIST's contents are not known.
IDX_CHECKSUMS = {
  'mnist': {
    '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
    'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
    '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
    '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
    'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
  },
  'fashion_mnist': {
    '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
    'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
    'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
    '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
    '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
  },
  'kmnist': {
    '51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4',
    'e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17',
    'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5',
    '20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c',
  },
}


def class_names(name: str) -> list[str]:
  """Reads a file of class_lists: names of classes, in the order of the labels.

  CIFAR's names are those in its archives, the MNISTs' those of TFDS.

  >>> class_names('cifar10')[0], len(class_names('cifar100'))
  ('airplane', 100)
  >>> class_names('fashion_mnist')[-1]
  'Ankle boot'
  """
  lists = resources.files('lipnext_jax.data') / 'class_lists'
  return (lists / f'{name}.txt').read_text(encoding='utf-8').splitlines()


def imagenet400_ids() -> np.ndarray:
  """Returns the ImageNet labels of the paper's 400 classes, ascending.

  They are those of `torch.manual_seed(2023); torch.randperm(1000)[:400]`.

  >>> imagenet400_ids()[:6].tolist()
  [0, 2, 3, 5, 6, 7]
  """
  return np.array(class_names('imagenet400'), int)


def imagenet_words(name: str) -> list[str]:
  """Reads synsets of ImageNet from a file that is part of TFDS.

  Args:
    name: 'labels.txt', the 1000 synsets in the order of their labels, or
      'validation_labels.txt', those of the validation images in the order of
      their names, the ground truth of the official development kit.

  >>> len(imagenet_words('labels.txt'))
  1000
  """
  import tensorflow_datasets as tfds  # An extra that the facts do not need.

  path = tfds.core.tfds_path(f'datasets/imagenet2012/{name}')
  return path.read_text().split()
