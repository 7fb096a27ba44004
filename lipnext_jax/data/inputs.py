"""Image files as what a certified model takes, or the reason why not."""

from collections.abc import Iterator
from collections.abc import Sequence
import os
import stat
from typing import NamedTuple
from typing import TextIO

import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import pillow
from lipnext_jax.data import transforms

# ITU-R 601-2 luma, as Pillow's mode 'L' weighs red, green and blue.
_LUMA = np.array([299, 587, 114]) / 1000


class Preprocessing(NamedTuple):
  """How a file becomes an image [H, W, ch] in [0, 1]."""

  image_shape: tuple[int, int, int]
  resize: int  # The shorter side is scaled to this, then cropped; 0: never.

  def describe(self) -> str:
    """One line for people.

    >>> Preprocessing((224, 224, 3), 256).describe()
    'RGB, shorter side scaled to 256, centre 224×224, values / 255'
    >>> Preprocessing((8, 8, 1), 0).describe()
    'grey, 8×8 as it is, values / 255'
    """
    h, w, ch = self.image_shape
    colour = 'grey' if ch == 1 else 'RGB'
    size = f'{h}×{w} as it is'
    if self.resize:
      size = f'shorter side scaled to {self.resize}, centre {h}×{w}'
    return f'{colour}, {size}, values / 255'


class BadInputError(errors.UserError):
  """A file that is no image for this model."""


def expand(names: Sequence[str], stdin: TextIO) -> Iterator[str]:
  """Files as they are, folders as the files below them, '-' as lines of stdin.

  Hidden files are left out; the order is that of the names, sorted in folders.
  """
  for name in names:
    if name == '-':
      yield from expand([line.rstrip('\n') for line in stdin], stdin)
    elif os.path.isdir(name):
      for folder, folders, found in os.walk(name):
        folders.sort()
        yield from (
          os.path.join(folder, file)
          for file in sorted(found)
          if not file.startswith('.')
        )
    elif name:
      yield name


def read(path: str, how: Preprocessing) -> np.ndarray:
  """One image, [H, W, ch] float64 in [0, 1].

  Args:
    path: JPEG, PNG, BMP or WebP; or a .npy file of shape [H, W, ch] (or
      [H, W]), uint8 or float in [0, 1], which is taken as it is: for images
      that are no multiples of 1/255.
    how: see `Preprocessing`.

  Raises:
    BadInputError: saying what is wrong with the file.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # A pipe may never answer.
      raise BadInputError('is no regular file')
    if path.endswith('.npy'):
      return _check_array(_load(path), how.image_shape)
    with open(path, 'rb') as file:
      pixels = images.decode(file.read(images.MAX_BYTES + 1))
  except OSError as error:
    raise BadInputError(f'cannot be read ({error.strerror})') from None
  except BadInputError:
    raise
  except Exception as error:  # NumPy's headers are parsed as Python.
    raise BadInputError(' '.join(str(error).split()) or repr(error)) from None
  h, w, ch = how.image_shape
  if how.resize:
    try:
      pixels = transforms.resize_center_crop(pixels, how.resize, h)
    except pillow.TooLargeError as error:
      raise BadInputError(str(error)) from None
  if pixels.shape[:2] != (h, w):
    found = '×'.join(map(str, pixels.shape[:2]))
    raise BadInputError(
      f'is {found} pixels, the model takes {h}×{w}: scale it, or add --resize'
    )
  if ch == 1:
    pixels = np.round(pixels @ _LUMA)[..., None]
  return pixels.astype(np.float64) / 255


def _load(path: str) -> np.ndarray:
  # Mapped: a header that claims more than the file holds costs nothing.
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  if isinstance(array, np.ndarray):
    return array
  array.close()
  raise BadInputError('holds several arrays (.npz); save one with numpy.save')


def _check_array(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  if array.ndim == 2:
    array = array[..., None]
  if array.shape != shape:
    raise BadInputError(f'has shape {array.shape}, the model takes {shape}')
  if array.dtype == np.uint8:
    return array.astype(np.float64) / 255
  if not np.issubdtype(array.dtype, np.floating):
    raise BadInputError(f'holds {array.dtype}, give uint8 or floats in [0, 1]')
  wide = array.astype(np.float64)
  if not np.all((wide >= 0) & (wide <= 1)):
    raise BadInputError('holds values outside [0, 1]')
  return wide
