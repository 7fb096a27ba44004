"""Converts arrays to Pillow images and back, and resizes with antialiasing."""

import numpy as np
from PIL import Image

# Of any image, decoded or scaled: Pillow's own limit, beyond which it warns of
# a decompression bomb.
MAX_PIXELS = 89_478_485


class TooLargeError(ValueError):
  """An image that would have more than `MAX_PIXELS` once it is scaled."""


def from_array(image: np.ndarray) -> Image.Image:
  """Converts uint8 [H, W, 3] to 'RGB', [H, W, 1] to 'L'.

  Raises:
    ValueError: another dtype or shape.
  """
  fits = image.dtype == np.uint8 and image.ndim == 3
  if not fits or image.shape[2] not in (1, 3):
    raise ValueError(
      f'{image.dtype}{list(image.shape)} is no uint8 [H, W, 1 or 3]'
    )
  return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
  """Converts 'RGB' to uint8 [H, W, 3], 'L' to [H, W, 1]."""
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
  """Scales so that the shorter side is `size` pixels.

  As torchvision's `Resize(size)` on PIL images: bilinear with a support that
  grows with the reduction (antialiasing); the longer side is rounded down; an
  image that has the size already is returned as it is.

  Args:
    image: of any size.
    size: the shorter side becomes this, in pixels.

  Raises:
    TooLargeError: the longer side would become too long. An image of one pixel
      by 8000 has a hundred bytes as a file; 256 pixels wide, it would have two
      gigabytes.

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
