"""Decodes image files to RGB, and refuses those that are damaged."""

import contextlib
import io
from typing import NamedTuple

import numpy as np
from PIL import ExifTags
from PIL import Image

from lipnext_jax.data import pillow

# The formats of image datasets. Pillow's other decoders are not used.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')
# Modes that convert to 'RGB' without clipping; 16-bit and float images do not.
# Alpha channels are dropped, as by torchvision's loader.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
MAX_BYTES = 64 << 20  # The largest JPEG of ImageNet has 15 MB.
JPEG_QUALITY = 95  # Of scaled images; Pillow advises against more.


class BadImageError(ValueError):
  """A file is not a whole image of a known format."""


class Stored(NamedTuple):
  """An image file to be stored in a record."""

  data: bytes  # JPEG or PNG, RGB.
  shape: tuple[int, int, int]  # (h, w, 3), decoded.


def decode(data: bytes) -> np.ndarray:
  """Decodes an image file to RGB.

  Args:
    data: a JPEG, PNG, BMP or WebP file; other colours are converted.

  Returns:
    uint8 [h, w, 3].

  Raises:
    BadImageError: the file has another format, is truncated or damaged, has
      more than 8 bits a channel, or is too large.

  >>> decode(encode_png(np.full((2, 3, 3), 7, np.uint8))).shape
  (2, 3, 3)
  """
  return pillow.to_array(_open(data)[0])


def list_conversions(data: bytes) -> list[str]:
  """Lists how the pixels of `decode(data)` differ from those of the file."""
  done = []
  with Image.open(io.BytesIO(data), formats=FORMATS) as image:
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


def encode_png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [h, w, 1 or 3] as a PNG file."""
  return _save(pillow.from_array(pixels), 'PNG')


def to_stored(data: bytes, shorter_side: int = 0) -> Stored:
  """Checks that an image file is whole, and returns the file to store.

  JPEG and PNG files in RGB are stored unchanged. Other colours and formats
  become a PNG file of the same pixels in RGB, so that every reader of the set
  gets [h, w, 3].

  Args:
    data: the file.
    shorter_side: length in pixels to which longer shorter sides are scaled down
      (bilinear, antialiased), to be stored as JPEG; 0: no scaling.

  Raises:
    BadImageError: see `decode`.
  """
  image, storable = _open(data)
  if shorter_side and min(image.size) > shorter_side:
    image = pillow.resize_shorter_side(image, shorter_side)
    data = _save(image, 'JPEG', quality=JPEG_QUALITY)
  elif not storable:
    data = _save(image, 'PNG')
  return Stored(data, (image.height, image.width, 3))


def _open(data: bytes) -> tuple[Image.Image, bool]:
  """Returns the image in RGB, and whether the file can be stored unchanged."""
  if len(data) > MAX_BYTES:
    raise BadImageError(f'has {len(data)} bytes, more than {MAX_BYTES}')
  if not data:
    raise BadImageError('is empty')
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > pillow.MAX_PIXELS:
        raise BadImageError(
          f'has {width}×{height} pixels, more than {pillow.MAX_PIXELS}'
        )
      # The decoder's mode: that of the image has been cut to 8 bits by Pillow.
      if any(';16B' in str(tile[3]) for tile in image.tile):
        raise BadImageError('has 16 bits a channel, which RGB cannot hold')
      if image.mode not in _MODES:
        raise BadImageError(f'has mode {image.mode}, which RGB cannot hold')
      fit = image.mode == 'RGB' and image.format in ('JPEG', 'PNG')
      image.load()
      # Pillow warns of palettes with transparency unless RGBA comes first.
      if 'transparency' in image.info and image.mode == 'P':
        return image.convert('RGBA').convert('RGB'), fit
      if image.mode == 'RGB':  # `convert` would copy: 15 % of the time.
        return image, fit
      return image.convert('RGB'), fit
  except BadImageError:
    raise
  except Image.UnidentifiedImageError:
    raise BadImageError(f'is not a {", ".join(FORMATS)} image') from None
  except Exception as error:  # Decoders raise any error.
    raise BadImageError(f'cannot be decoded ({error})') from None


def _save(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()
