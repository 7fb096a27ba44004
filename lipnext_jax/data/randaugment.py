"""RandAugment (arXiv 1909.13719) on Pillow images, as torchvision defines it.

`OPS` holds the 14 operations of `torchvision.transforms.RandAugment` with its
31 magnitudes, nearest-neighbour sampling and black outside the image: the
published recipes were tuned on them. Images stay bytes, so ε keeps its unit.
"""

from collections.abc import Callable
import math
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps

BINS = 31  # Magnitudes are 0 … 30, torchvision's default.

PillowTransform = Callable[[Image.Image, np.random.Generator], Image.Image]
# (image, share of the largest strength) → image. A negative share takes the
# other direction, of operations with two.
Op = Callable[[Image.Image, float], Image.Image]


def randaugment(
  probability: float, ops: int, magnitude: int
) -> PillowTransform:
  """Returns a transform that applies random operations.

  Args:
    probability: probability that an image ('RGB' or 'L') is changed at all.
    ops: number of operations, drawn with replacement.
    magnitude: strength of every operation, from 0 to `BINS` − 1.

  >>> image = Image.new('RGB', (8, 6), (200, 100, 0))
  >>> randaugment(1.0, 2, 9)(image, np.random.default_rng(0)).size
  (8, 6)
  """
  ops_by_index = list(OPS.values())

  def apply(image, rng):
    if rng.random() >= probability:
      return image
    picks = rng.integers(len(ops_by_index), size=ops)
    is_negative = rng.integers(2, size=ops)
    share = magnitude / (BINS - 1)
    for pick, negative in zip(picks, is_negative, strict=True):
      image = ops_by_index[pick](image, -share if negative else share)
    return image

  return apply


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  """Reads output pixel (x, y) at the input's (ax + by + c, dx + ey + f)."""
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
  )


def _shift(side: int, share: float) -> int:
  """Returns a shift in whole pixels, rounded towards zero."""
  # The largest is 150 pixels of a side of 331, the image size of AutoAugment.
  return int(150 / 331 * side * share)


def _blend(enhancer: Callable[[Image.Image], Any]) -> Op:
  """Returns an operation that blends an image with a degenerate one."""
  return lambda image, share: enhancer(image).enhance(1 + 0.9 * share)


OPS: dict[str, Op] = {
  'Identity': lambda image, _: image,
  # Shears leave the upper left corner in place.
  'ShearX': lambda image, share: _affine(image, 1, 0.3 * share, 0, 0, 1, 0),
  'ShearY': lambda image, share: _affine(image, 1, 0, 0, 0.3 * share, 1, 0),
  'TranslateX': lambda image, share: _affine(
    image, 1, 0, -_shift(image.width, share), 0, 1, 0
  ),
  'TranslateY': lambda image, share: _affine(
    image, 1, 0, 0, 0, 1, -_shift(image.height, share)
  ),
  # Up to 30 degrees, counter-clockwise, about the centre.
  'Rotate': lambda image, share: image.rotate(
    30 * share, Image.Resampling.NEAREST
  ),
  'Brightness': _blend(ImageEnhance.Brightness),  # With black.
  'Color': _blend(ImageEnhance.Color),  # With grey.
  'Contrast': _blend(ImageEnhance.Contrast),  # With the mean.
  'Sharpness': _blend(ImageEnhance.Sharpness),  # With the smoothed image.
  # Keeps the highest bits of every byte: 8 down to 4 of them.
  'Posterize': lambda image, share: ImageOps.posterize(
    image, 8 - round(4 * abs(share))
  ),
  # Inverts bytes at or above a threshold, which falls from 255 to 0. Pillow
  # takes a whole one: a byte is below 178.5 if and only if it is below 179.
  'Solarize': lambda image, share: ImageOps.solarize(
    image, math.ceil(255 * (1 - abs(share)))
  ),
  'AutoContrast': lambda image, _: ImageOps.autocontrast(image),
  'Equalize': lambda image, _: ImageOps.equalize(image),
}
