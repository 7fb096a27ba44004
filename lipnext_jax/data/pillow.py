"""Converts arrays to Pillow images and back, and resizes with antialiasing."""

import numpy as np
from PIL import Image

# Pixels of the largest image, decoded or scaled. Pillow warns of decompression
# bombs from here on.
MAX_PIXELS = 89_478_485


class TooLargeError(ValueError):
  """A scaled image would have more than `MAX_PIXELS` pixels."""


def from_array(image: np.ndarray) -> Image.Image:
  """Converts uint8 [H, W, 3] to 'RGB', [H, W, 1] to 'L'.

  Raises:
    ValueError: the array has another dtype or shape.
  """
  fits = image.dtype == np.uint8 and image.ndim == 3
  if not fits or image.shape[2] not in (1, 3):
    raise ValueError(
      f'{image.dtype}{list(image.shape)} is not uint8 [H, W, 1 or 3]'
    )
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
  """Converts 'RGB' to uint8 [H, W, 3], 'L' to [H, W, 1]."""
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
  """Scales an image so that its shorter side has `size` pixels.

  Does what torchvision's `Resize(size)` does with PIL images: bilinear and
  antialiased, the longer side rounded down. An image of that size is returned
  unchanged.

  Args:
    image: image of any size.
    size: shorter side of the result in pixels.

  Raises:
    TooLargeError: the longer side would become too long. A file of 1×8000
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
    raise TooLargeError(
      f'has {width}×{height} pixels, which become {target[0]}×{target[1]} when '
      f'the shorter side is scaled to {size}, more than {MAX_PIXELS} pixels; '
      'crop it, or leave it out'
    )
  return image.resize(target, Image.Resampling.BILINEAR)
