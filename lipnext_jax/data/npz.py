"""Arrays of the user's: `image` [n, H, W, ch] uint8 and `label` [n] int.

An .npz file is read into the memory of every process that uses it. The folder
that it unzips to, with image.npy and label.npy, is memory-mapped instead:
examples are read when they are needed, and processes share the pages.
"""

import os

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import views


class NpzSource(views.Source):
  """Examples of a file or folder, which is pickled as its path.

  Attributes:
    images: [n, H, W, ch] uint8.
    labels: [n] integers, at least 0.
  """

  def __init__(self, path: str):
    """Opens a file or folder.

    Args:
      path: an .npz file, or a folder with image.npy and label.npy.

    Raises:
      ValueError: the arrays cannot be read, or are not as described above.
    """
    self._path = path
    if not os.path.exists(path):
      raise ValueError('does not exist')
    try:
      if os.path.isdir(path):
        self.images, self.labels = (
          np.load(os.path.join(path, name), mmap_mode='r', allow_pickle=False)
          for name in ('image.npy', 'label.npy')
        )
      else:  # Pickled objects are refused: they run code.
        with open(path, 'rb') as file:
          arrays = np.load(file, allow_pickle=False)
          self.images, self.labels = arrays['image'], arrays['label']
    except Exception as error:  # NumPy evaluates headers: any error.
      raise ValueError(f'cannot be read ({errors.one_line(error)})') from None
    images, labels = self.images, self.labels
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
      raise ValueError(f'has {images.dtype}{images.shape} as `image`')
    integer = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != images.shape[:1] or not integer:
      raise ValueError(f'has {labels.dtype}{labels.shape} as `label`')
    if labels.min() < 0:
      raise ValueError(f'has the label {labels.min()}')

  def __reduce__(self):
    return NpzSource, (self._path,)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> views.Example:
    """Returns {'image': uint8 [H, W, ch], 'label': int32}."""
    image = np.array(self.images[index])  # A copy that is not mapped.
    return {'image': image, 'label': np.int32(self.labels[index])}


def find(data_dir: str, name: str) -> str:
  """Returns the folder `name` if there is only that, else `name`.npz."""
  folder = os.path.expanduser(os.path.join(data_dir, name))
  file = f'{folder}.npz'
  return folder if os.path.isdir(folder) and not os.path.exists(file) else file
