"""Your own arrays: .npz files with `image` and `label`, read into memory."""

import os

import numpy as np

from lipnext_jax import errors


def read_arrays(data_dir: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  """The images and labels of one file.

  Args:
    data_dir: the folder.
    name: of the file in it.

  Returns:
    uint8 [n, H, W, ch] and integers [n], at least 0.

  Raises:
    ConfigError: the folder or the file is missing, or holds something else.

  >>> read_arrays('/no/where', 'train.npz')
  Traceback (most recent call last):
  lipnext_jax.errors.ConfigError: dataset.data_dir='/no/where' is no \
directory; it needs train.npz and test.npz, each with `image` [n, H, W, ch] \
uint8 and `label` [n] int.
  """

  def error(problem: str) -> errors.ConfigError:
    return errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      problem,
      'it needs train.npz and test.npz, each with `image` [n, H, W, ch] uint8 '
      'and `label` [n] int',
    )

  path = os.path.join(data_dir, name)
  if not os.path.isdir(data_dir):
    raise error('is no directory')
  if not os.path.exists(path):
    raise error(f'holds no {name}')
  try:  # Pickles are refused: they run code.
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
      images, labels = arrays['image'], arrays['label']
  except Exception as exception:  # NumPy's headers are parsed as Python.
    raise error(f'has a {name} that cannot be read ({exception})') from None
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise error(f'has {images.dtype}{images.shape} as `image` in {name}')
  integer = np.issubdtype(labels.dtype, np.integer)
  if labels.shape != images.shape[:1] or not integer or labels.min() < 0:
    raise error(f'has {labels.dtype}{labels.shape} as `label` in {name}')
  return images, labels
