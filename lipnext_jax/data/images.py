"""Decodes image files, and refuses damaged ones; scales and encodes images."""

import io

import numpy as np
from PIL import Image

# The formats of image datasets. Pillow's other decoders are not used.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP')
# Modes that convert to 'RGB' without clipping; 16-bit and float images do not.
# Alpha channels are dropped, as by torchvision's loader.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
MAX_BYTES = 64 << 20  # The largest JPEG of ImageNet has 15 MB.
# Pixels of the largest image, decoded or scaled. Pillow warns of decompression
# bombs from here on.
MAX_PIXELS = 89_478_485
JPEG_QUALITY = 95  # Of scaled images; Pillow advises against more.


class BadImageError(ValueError):
  """An image that is damaged, too large, or of a kind that is not supported."""


def read(path: str) -> bytes:
  """Reads the bytes of an image file, for `decode`.

  Raises:
    BadImageError: it cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return file.read(MAX_BYTES + 1)  # One more than `decode` accepts.
  except OSError as error:
    raise BadImageError(f'cannot be read ({error.strerror})') from None


def decode(data: bytes) -> np.ndarray:
  """Decodes a JPEG, PNG, BMP or WebP file to RGB, uint8 [h, w, 3].

  Raises:
    BadImageError: the file has another format, is truncated or damaged, has
      more than 8 bits a channel, or is too large.

  >>> decode(encode_png(np.full((2, 3, 3), 7, np.uint8))).shape
  (2, 3, 3)
  """
  return to_array(_open(data)[0])


def from_array(image: np.ndarray) -> Image.Image:
  """Converts uint8 [h, w, 3] to 'RGB', [h, w, 1] to 'L'.

  Raises:
    BadImageError: the array has another dtype or shape.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
    raise BadImageError(
      f'is {image.dtype}{list(image.shape)}; resizing and RandAugment need '
      'uint8 [h, w, 1 or 3]'
    )
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
  """Converts 'RGB' to uint8 [h, w, 3], 'L' to [h, w, 1]."""
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
  """Scales an image so that its shorter side has `size` pixels.

  Does what torchvision's `Resize(size)` does with PIL images: bilinear and
  antialiased, the longer side rounded down. An image of that size is returned
  unchanged.

  Raises:
    BadImageError: the longer side would become too long. A file of 1×8000
      pixels takes a hundred bytes; scaled to a width of 256, two gigabytes.

  >>> resize_shorter_side(Image.new('RGB', (500, 375)), 256).size
  (341, 256)
  """
  width, height = image.size
  shorter = min(width, height)
  if shorter == size:
    return image
  target = (size * width // shorter, size * height // shorter)
  if target[0] * target[1] > MAX_PIXELS:
    raise BadImageError(
      f'has {width}×{height} pixels, which become {target[0]}×{target[1]} when '
      f'the shorter side is scaled to {size}, more than {MAX_PIXELS} pixels; '
      'crop it, or leave it out'
    )
  return image.resize(target, Image.Resampling.BILINEAR)


def encode_png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [h, w, 1 or 3] as a PNG file."""
  return _save(from_array(pixels), 'PNG')


def to_stored(
  data: bytes, shorter_side: int = 0
) -> tuple[bytes, tuple[int, int, int]]:
  """Checks that an image file is whole; returns the file to store, its shape.

  JPEG and PNG files in RGB are stored unchanged. Other colours and formats
  become a PNG file of the same pixels in RGB, so that every reader of the set
  gets [h, w, 3].

  Args:
    data: the file.
    shorter_side: length in pixels to which longer shorter sides are scaled down
      to be stored as JPEG; 0: no scaling.

  Raises:
    BadImageError: see `decode`.
  """
  image, storable = _open(data)
  if shorter_side and min(image.size) > shorter_side:
    image = resize_shorter_side(image, shorter_side)
    data = _save(image, 'JPEG', quality=JPEG_QUALITY)
  elif not storable:
    data = _save(image, 'PNG')
  return data, (image.height, image.width, 3)


def _open(data: bytes) -> tuple[Image.Image, bool]:
  """Returns the image in RGB, and whether the file can be stored unchanged."""
  if len(data) > MAX_BYTES:
    raise BadImageError(f'has {len(data)} bytes, more than {MAX_BYTES}')
  if not data:
    raise BadImageError('is empty')
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise BadImageError(
          f'has {width}×{height} pixels, more than {MAX_PIXELS}'
        )
      # The decoder's mode: that of the image has been cut to 8 bits by Pillow.
      if any(';16B' in str(tile[3]) for tile in image.tile):
        raise BadImageError('has 16 bits a channel, which RGB cannot hold')
      if image.mode not in _MODES:
        raise BadImageError(f'has mode {image.mode}, which RGB cannot hold')
      fit = image.mode == 'RGB' and image.format in ('JPEG', 'PNG')
      image.load()
      # Pillow warns of palettes with transparency unless RGBA comes first.
      if image.mode == 'P' and 'transparency' in image.info:
        return image.convert('RGBA').convert('RGB'), fit
      # `convert` would copy: 15 % of the time.
      return image if image.mode == 'RGB' else image.convert('RGB'), fit
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
