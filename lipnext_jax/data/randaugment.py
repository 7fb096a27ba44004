"""RandAugment (arXiv 1909.13719) on Pillow images, as torchvision defines it.

`OPS` holds the 14 operations of `torchvision.transforms.RandAugment` with its
31 magnitudes, nearest-neighbour sampling and black outside the image, which is
what the published recipes were tuned on. The operations map bytes to bytes in
[0, 255], so ε keeps its meaning.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps

BINS = 31  # Magnitudes are 0 … 30, torchvision's default.

PillowTransform = Callable[[Image.Image, np.random.Generator], Image.Image]


class Op(NamedTuple):
  """One operation of RandAugment."""

  apply: Callable[[Image.Image, float], Image.Image]  # (image, strength).
  strength: Callable[[float, Image.Image], float]  # Of (share of 30, image).
  signed: bool  # Whether the strength is negated half of the time.


def randaugment(
  probability: float, ops: int, magnitude: int
) -> PillowTransform:
  """Returns a transform that applies random operations.

  Args:
    probability: of changing an image at all.
    ops: number of operations, drawn with replacement.
    magnitude: strength of all of them, from 0 to `BINS` − 1.

  Returns:
    (Pillow image 'RGB' or 'L', generator) → image of the same size.

  >>> image = Image.new('RGB', (8, 6), (200, 100, 0))
  >>> randaugment(1.0, 2, 9)(image, np.random.default_rng(0)).size
  (8, 6)
  """
  names = list(OPS)

  def apply(image, rng):
    if rng.random() >= probability:
      return image
    picks = rng.integers(len(names), size=ops)
    signs = rng.integers(2, size=ops)
    for pick, sign in zip(picks, signs, strict=True):
      image = apply_op(image, names[pick], magnitude, negate=bool(sign))
    return image

  return apply


def apply_op(
  image: Image.Image, name: str, magnitude: int, *, negate: bool
) -> Image.Image:
  """Applies one operation at one magnitude.

  Args:
    image: 'RGB' or 'L'.
    name: a key of `OPS`.
    magnitude: from 0 to `BINS` − 1.
    negate: take the other direction, where an operation has one.

  >>> image = Image.new('L', (1, 1), 200)
  >>> apply_op(image, 'Solarize', 30, negate=False).getpixel((0, 0))
  55
  >>> apply_op(image, 'Brightness', 30, negate=True).getpixel((0, 0))
  20
  """
  op = OPS[name]
  strength = op.strength(magnitude / (BINS - 1), image)
  if op.signed and negate:
    strength = -strength
  return op.apply(image, strength)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  """Reads output pixel (x, y) at the input's (ax + by + c, dx + ey + f)."""
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
  )


def _linear(largest: float) -> Callable[[float, Image.Image], float]:
  return lambda share, image: largest * share


def _blend(enhancer: Callable[[Image.Image], Any]) -> Op:
  """Blends with a degenerate image: black, grey, the mean, or smoothed."""
  return Op(lambda image, s: enhancer(image).enhance(1 + s), _linear(0.9), True)


def _plain(apply: Callable[[Image.Image], Image.Image]) -> Op:
  """Wraps an operation that has no strength."""
  return Op(lambda image, s: apply(image), _linear(0), False)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
  # `ImageOps.solarize` rounds nothing, though it declares a whole threshold:
  # a whole byte is below 178.5 if and only if it is below 179.
  return ImageOps.solarize(image, math.ceil(threshold))


# The largest shift is 150 pixels of a 331 pixel image (AutoAugment's size).
OPS: dict[str, Op] = {
  'Identity': _plain(lambda image: image),
  'ShearX': Op(  # About the upper left corner, like ShearY.
    lambda image, s: _affine(image, 1, s, 0, 0, 1, 0), _linear(0.3), True
  ),
  'ShearY': Op(
    lambda image, s: _affine(image, 1, 0, 0, s, 1, 0), _linear(0.3), True
  ),
  'TranslateX': Op(  # By whole pixels, towards zero.
    lambda image, s: _affine(image, 1, 0, -int(s), 0, 1, 0),
    lambda share, image: 150 / 331 * image.width * share,
    True,
  ),
  'TranslateY': Op(
    lambda image, s: _affine(image, 1, 0, 0, 0, 1, -int(s)),
    lambda share, image: 150 / 331 * image.height * share,
    True,
  ),
  'Rotate': Op(  # Degrees, counter-clockwise, about the centre.
    lambda image, s: image.rotate(s, Image.Resampling.NEAREST),
    _linear(30.0),
    True,
  ),
  'Brightness': _blend(ImageEnhance.Brightness),
  'Color': _blend(ImageEnhance.Color),
  'Contrast': _blend(ImageEnhance.Contrast),
  'Sharpness': _blend(ImageEnhance.Sharpness),
  'Posterize': Op(  # Bits that are kept: from 8 down to 4.
    lambda image, s: ImageOps.posterize(image, int(s)),
    lambda share, image: 8 - round(4 * share),
    False,
  ),
  'Solarize': Op(  # Inverts what is at or above the threshold.
    _solarize, lambda share, image: 255 * (1 - share), False
  ),
  'AutoContrast': _plain(ImageOps.autocontrast),
  'Equalize': _plain(ImageOps.equalize),
}
