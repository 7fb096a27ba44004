"""Decodes image files to RGB, or refuses them; never silent garbage."""

import contextlib
import io
from typing import NamedTuple

import numpy as np
from PIL import ExifTags
from PIL import Image

from lipnext_jax.data import pillow

# What data sets of photographs use; every other decoder of Pillow stays shut.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')
# Modes that 'RGB' holds without clipping: of 16-bit and float images it does
# not. Alpha channels are dropped, as torchvision's loader drops them.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
MAX_BYTES = 64 << 20  # The largest JPEG of ImageNet has 15 MB.
MAX_PIXELS = pillow.MAX_PIXELS
JPEG_QUALITY = 95  # Of re-scaled images; beyond it Pillow advises against.


class BadImageError(ValueError):
  """The bytes are no image that can be decoded whole, and why."""


class Stored(NamedTuple):
  """An image as a record holds it."""

  data: bytes  # JPEG or PNG, RGB.
  shape: tuple[int, int, int]  # (h, w, 3), decoded.


def decode(data: bytes) -> np.ndarray:
  """Decodes an image file to RGB.

  Args:
    data: a whole JPEG, PNG, BMP or WebP file; grey, palette, CMYK and alpha
      are converted.

  Returns:
    uint8 [h, w, 3].

  Raises:
    BadImageError: no such image, a truncated or damaged one, one of more than 8
      bits a channel, or one of absurd size.

  >>> decode(encode_png(np.full((2, 3, 3), 7, np.uint8))).shape
  (2, 3, 3)
  """
  return pillow.to_array(_open(data)[0])


def list_conversions(data: bytes) -> list[str]:
  """Lists what `decode` does to a file beside reading its pixels.

  Args:
    data: a file that `decode` took.
  """
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
    with contextlib.suppress(Exception):  # Damaged, it turns nothing.
      if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        done.append('EXIF rotation ignored')
    if (frames := getattr(image, 'n_frames', 1)) > 1:
      done.append(f'first of {frames} frames')
  return done


def encode_png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [h, w, 1 or 3] as a PNG file, without loss."""
  return _save(pillow.from_array(pixels), 'PNG')


def to_stored(data: bytes, shorter_side: int = 0) -> Stored:
  """Decodes an image file to see that it is whole; returns what to store.

  RGB JPEG and PNG files are stored as they are. Whatever else there is (grey,
  CMYK, a palette, another format) becomes an RGB PNG of the same pixels, so
  that every reader gets [h, w, 3].

  Args:
    data: the file.
    shorter_side: above 0, images whose shorter side exceeds it are scaled down
      to it (bilinear, antialiased) and stored as JPEG of quality 95.

  Raises:
    BadImageError: see `decode`.
  """
  image, as_it_is = _open(data)
  if shorter_side and min(image.size) > shorter_side:
    image = pillow.resize_shorter_side(image, shorter_side)
    data = _save(image, 'JPEG', quality=JPEG_QUALITY)
  elif not as_it_is:
    data = _save(image, 'PNG')
  return Stored(data, (image.height, image.width, 3))


def _open(data: bytes) -> tuple[Image.Image, bool]:
  """Returns the decoded RGB image, and whether the file is fit to be stored."""
  if len(data) > MAX_BYTES:
    raise BadImageError(f'has {len(data)} bytes, more than {MAX_BYTES}')
  if not data:
    raise BadImageError('is empty')
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise BadImageError(f'claims {width}×{height} pixels: a bomb?')
      # As the decoder reads the file: Pillow would cut colours to 8 bits.
      if any(';16B' in str(tile[3]) for tile in image.tile):
        raise BadImageError('has 16 bits a channel, which RGB cannot hold')
      if image.mode not in _MODES:
        raise BadImageError(f'has mode {image.mode}, which RGB cannot hold')
      fit = image.mode == 'RGB' and image.format in ('JPEG', 'PNG')
      image.load()
      # Through RGBA, else Pillow warns of palettes with transparency.
      if 'transparency' in image.info and image.mode == 'P':
        return image.convert('RGBA').convert('RGB'), fit
      if image.mode == 'RGB':  # `convert` would copy it, 15 % of the decoding.
        return image, fit
      return image.convert('RGB'), fit
  except BadImageError:
    raise
  except Image.UnidentifiedImageError:
    raise BadImageError(f'is no {", ".join(FORMATS)} image') from None
  except Exception as error:  # Decoders raise whatever they trip over.
    raise BadImageError(f'cannot be decoded ({error})') from None


def _save(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()
