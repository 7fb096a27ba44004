"""Reads image files as inputs of a certified model."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import io
import os
from typing import NamedTuple
from typing import TextIO

import numpy as np
from PIL import ExifTags
from PIL import Image

from lipnext_jax import errors
from lipnext_jax.data import folder
from lipnext_jax.data import images
from lipnext_jax.data import transforms


class Preprocessing(NamedTuple):
  """The steps from a file to an image [H, W, ch] in [0, 1]."""

  image_shape: tuple[int, int, int]
  resize: int  # Shorter side in pixels before the crop; 0: neither of them.

  def describe(self) -> str:
    """Describes the steps in one line.

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
  """A file is not an image, or does not fit the model."""


def expand(names: Sequence[str], stdin: TextIO) -> Iterator[str]:
  """Yields file names: folders as the files below them, '-' as stdin's lines.

  Raises:
    DataError: a folder has none; its files are those of `folder.list_files`.
  """
  for name in names:
    if name == '-':
      yield from expand([line.rstrip('\n') for line in stdin], stdin)
    elif os.path.isdir(name):
      if not (found := folder.list_files(name)):
        raise errors.DataError(f'{name}: holds no images')
      yield from found
    elif name:
      yield name


# All that may happen to a file; `read` returns what did happen.
CONVERSIONS = (
  'alpha, EXIF rotation and colour profiles are ignored, the first frame is '
  'taken; .npy: uint8 / 255, floats as they are, never scaled'
)


def read(path: str, how: Preprocessing) -> tuple[np.ndarray, list[str]]:
  """Reads one image, and lists how it was changed.

  Args:
    path: a JPEG, PNG, BMP or WebP file, or a .npy file of shape [H, W, ch] or
      [H, W] with uint8 or floats in [0, 1]. Floats are taken unchanged, so they
      can hold images that are no multiples of 1/255.
    how: the preprocessing of the model.

  Returns:
    [H, W, ch] float64 in [0, 1], and a phrase for every change.

  Raises:
    BadInputError: the file is not an image, or does not fit the model.
  """
  try:
    if path.endswith('.npy'):
      return _read_array(path, how.image_shape)
    data = images.read(path)
    pixels, done = images.decode(data), _list_conversions(data)
    h, w, ch = how.image_shape
    if how.resize:
      scale = how.resize / min(pixels.shape[:2])
      if scale > 1:
        done.append(
          f'scaled up by {scale:.3g}, where its own pixels have a smaller '
          'radius'
        )
      elif scale < 1:
        done.append(f'scaled down by {1 / scale:.3g}')
      if len({*pixels.shape[:2]}) > 1 or (h, w) != (how.resize, how.resize):
        done.append('cropped')
      pixels = transforms.resize_center_crop(pixels, how.resize, h)
  except BadInputError:
    raise
  except Exception as error:  # NumPy evaluates headers: any error.
    raise BadInputError(errors.one_line(error)) from None
  if pixels.shape[:2] != (h, w):
    found = '×'.join(map(str, pixels.shape[:2]))
    raise BadInputError(
      f'is {found} pixels, the model takes {h}×{w}: scale it, or add --resize'
    )
  if ch == 1:
    if np.any(pixels != pixels[..., :1]):
      done.append('colours weighed to grey')
    done = [phrase for phrase in done if phrase != 'grey repeated as RGB']
    pixels = images.to_array(images.from_array(pixels).convert('L'))
  return pixels.astype(np.float64) / 255, done


def _list_conversions(data: bytes) -> list[str]:
  """Lists how the pixels of `images.decode(data)` differ from the file's."""
  done = []
  with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
    if image.mode in ('LA', 'PA', 'RGBA') or 'transparency' in image.info:
      done.append('alpha dropped')
    if image.mode in ('1', 'L', 'LA'):
      done.append('grey repeated as RGB')
    elif image.mode not in ('RGB', 'RGBA'):
      done.append(f'{image.mode} converted to RGB')
    if 'icc_profile' in image.info:
      done.append('colour profile ignored')
    with contextlib.suppress(Exception):  # Damaged EXIF data rotate nothing.
      if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        done.append('EXIF rotation ignored')
    if (frames := getattr(image, 'n_frames', 1)) > 1:
      done.append(f'first of {frames} frames')
  return done


def _read_array(
  path: str, shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[str]]:
  """Reads a .npy file as `read` does."""
  # Mapped, because a header may claim more bytes than the file has.
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  if array.ndim == 2:
    array = array[..., None]
  if array.shape != shape:
    raise BadInputError(f'has shape {array.shape}, the model takes {shape}')
  if array.dtype == np.uint8:
    return array.astype(np.float64) / 255, ['uint8 array / 255']
  if array.dtype.kind != 'f' or array.dtype.itemsize > 8:
    raise BadInputError(f'holds {array.dtype}, give uint8 or floats in [0, 1]')
  wide = array.astype(np.float64)
  if not np.all((wide >= 0) & (wide <= 1)):
    raise BadInputError('holds values outside [0, 1]')
  return wide, [f'{array.dtype.name} array as it is']
