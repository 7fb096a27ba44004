"""Compares every operation with an oracle written from its definition.

The oracles work in float64 on arrays [h, w, ch] and share nothing with Pillow.
Each returns the real value before rounding, so that a pixel whose value lies
within `NEAR` of a rounding boundary may come out either way: Pillow computes in
float32 and in 16 bit fixed point.
"""

import functools
import itertools
import math

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from lipnext_jax.data import images
from lipnext_jax.data import randaugment

# Blends: float32 of values below 2·255, each rounded twice. Sampling: 16 bit
# fixed point coefficients times at most 2·40 pixels. Both below 2e-3.
NEAR = 2e-3


def make_image(height=23, width=31, channels=3, seed=0):
  """Returns a smooth image with noise that does not fill the range."""
  rng = np.random.default_rng(seed)
  rows = np.linspace(20, 150, height)[:, None, None]
  columns = np.linspace(0, 60, width)[None, :, None]
  noise = rng.integers(0, 30, size=(height, width, channels))
  return (rows + columns + noise).astype(np.uint8)


def apply(image, name, magnitude, negate):
  share = magnitude / 30 * (-1 if negate else 1)
  return images.to_array(randaugment.OPS[name](images.from_array(image), share))


def sample(image, x, y):
  """Samples at real positions: the pixel whose square holds them.

  Pixel (i, j) covers [j, j + 1) × [i, i + 1); outside is black. Returns the
  set of values that positions off by `NEAR` could give, [4, h, w, ch].
  """
  framed = np.pad(image, ((1, 1), (1, 1), (0, 0)))  # Black.
  height, width = image.shape[:2]
  values = []
  for dx, dy in itertools.product((-NEAR, NEAR), repeat=2):
    i = np.floor(y + dy).astype(int).clip(-1, height) + 1
    j = np.floor(x + dx).astype(int).clip(-1, width) + 1
    values.append(framed[i, j])
  return np.stack(values)


def shift(a, side):
  return math.copysign(math.floor(150 / 331 * side * abs(a)), a)


def turn_back(x, y, a, w, h):
  """Rotate is counter-clockwise on a screen whose y axis points down."""
  cos, sin = math.cos(math.radians(30 * a)), math.sin(math.radians(30 * a))
  x, y = x - w / 2, y - h / 2
  return cos * x - sin * y + w / 2, sin * x + cos * y + h / 2


# Where what is seen at the pixel centre (x, y) came from, of an image w × h at
# the signed strength a, in [−1, 1].
GEOMETRY = {
  'ShearX': lambda x, y, a, w, h: (x + 0.3 * a * y, y),
  'ShearY': lambda x, y, a, w, h: (x, y + 0.3 * a * x),
  'TranslateX': lambda x, y, a, w, h: (x - shift(a, w), y),
  'TranslateY': lambda x, y, a, w, h: (x, y - shift(a, h)),
  'Rotate': turn_back,
}


def move(name, image, a):
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width] + 0.5
  return sample(image, *GEOMETRY[name](x, y, a, width, height))


def truncated(real):
  """Truncates real values to bytes; both of two that are close."""
  return np.stack(
    [np.floor(np.clip(real + d, 0, 255)).astype(int) for d in (-NEAR, NEAR)]
  )


def grey(image, offset=0.0):
  """Returns the rounded ITU-R 601-2 luma; a grey image is unchanged."""
  if image.shape[2] == 1:
    return image.astype(float)
  luma = image @ np.array([299, 587, 114]) / 1000
  return np.floor(luma + 0.5 + offset)[..., None]


def smooth(image):
  """Smooths by (1 1 1; 1 5 1; 1 1 1)/13, and keeps the edges."""
  out = image.astype(float)
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None]
  total = ndimage.correlate(out, kernel)
  out[1:-1, 1:-1] = np.floor(total[1:-1, 1:-1] / 13 + 0.5)
  return out


# What an image is blended with, at a weight of 0: any of several.
BLENDS = {
  'Brightness': lambda image: [np.zeros(image.shape)],
  # Three 16 bit coefficients, each off by at most 2⁻¹⁷, times at most 255.
  'Color': lambda image: [grey(image, offset) for offset in (-0.006, 0.006)],
  'Contrast': lambda image: [math.floor(grey(image).mean() + 0.5)],
  'Sharpness': lambda image: [smooth(image)],
}


def blend(name, image, a):
  return np.concatenate(
    [
      truncated(other + (1 + 0.9 * a) * (image.astype(float) - other))
      for other in BLENDS[name](image)
    ]
  )


def posterize(image, share):
  dropped = round(4 * share)
  return (image // 2**dropped * 2**dropped)[None]


def solarize(image, share):
  inverted = 255 - image.astype(int)
  return np.where(image >= 255 * (1 - share), inverted, image)[None]


def auto_contrast(image, _):
  low = image.min(axis=(0, 1)).astype(float)
  high = image.max(axis=(0, 1)).astype(float)
  stretched = (image - low) * 255 / np.where(high > low, high - low, 1)
  return truncated(np.where(high > low, stretched, image))


def equalize(image, _):
  """Maps values by the cumulative histogram, in steps of its 255th part."""
  out = image.astype(int)
  for channel in range(image.shape[2]):
    plane = image[..., channel].astype(int)
    step = np.sum(plane < plane.max()) // 255
    if step:  # Else there are too few pixels to equalise.
      below = np.array([np.sum(plane < value) for value in range(256)])
      table = np.minimum((step // 2 + below) // step, 255)
      out[..., channel] = table[plane]
  return out[None]


UNSIGNED = {
  'Identity': lambda image, _: image[None],
  'Posterize': posterize,
  'Solarize': solarize,
  'AutoContrast': auto_contrast,
  'Equalize': equalize,
}
ORACLES = {
  name: functools.partial(oracle, name)
  for oracle, names in ((move, GEOMETRY), (blend, BLENDS))
  for name in names
} | UNSIGNED


def mismatches(image, name, magnitude, negate, out):
  """Returns the share of pixels that equal no value of the oracle."""
  sign = -1 if negate and name not in UNSIGNED else 1
  options = ORACLES[name](image, sign * magnitude / 30)
  return float(np.mean(~np.any(options == out, axis=0)))


@pytest.mark.parametrize('name', randaugment.OPS)
def test_pixels_are_the_documented_ones(name):
  assert randaugment.OPS.keys() == ORACLES.keys()
  shapes = [(23, 31, 1), (32, 32, 3), (40, 17, 3), (23, 31, 3), (40, 17, 1)]
  for shape, magnitude, negate in itertools.product(
    shapes, (0, 1, 9, 17, 30), (False, True)
  ):
    image = make_image(*shape)
    out = apply(image, name, magnitude, negate)
    assert (out.dtype, out.shape) == (np.uint8, shape)
    assert not mismatches(image, name, magnitude, negate, out)


PLANTED = {
  # What these operations are easily mistaken for, at magnitude 9.
  'ShearX': lambda image: apply(image, 'ShearX', 9, True),
  'ShearY': lambda image: apply(image, 'ShearX', 9, False),
  'TranslateX': lambda image: apply(image, 'TranslateX', 11, False),
  'TranslateY': lambda image: np.roll(apply(image, 'TranslateY', 9, False), 1),
  'Rotate': lambda image: apply(image, 'Rotate', 9, True),
  'Brightness': lambda image: apply(image, 'Contrast', 9, False),
  'Color': lambda image: apply(image, 'Color', 10, False),
  'Contrast': lambda image: apply(image, 'Contrast', 8, False),
  'Sharpness': lambda image: apply(image, 'Sharpness', 9, True),
  'Posterize': lambda image: apply(image, 'Posterize', 17, False),
  'Solarize': lambda image: apply(image, 'Solarize', 10, False),
  'AutoContrast': lambda image: image,
  'Equalize': lambda image: apply(image, 'AutoContrast', 9, False),
}


def test_wrong_operations_are_noticed():
  image = make_image()
  for name, wrong in PLANTED.items():
    assert mismatches(image, name, 9, False, wrong(image)) > 0.02, name


def test_operations_are_drawn_uniformly_and_follow_each_other(monkeypatch):
  log = []

  def op(name, image, share):
    log.append((name, share))
    return image.point(lambda value: value + 1)

  names = list(randaugment.OPS)
  logged = {name: functools.partial(op, name) for name in names}
  monkeypatch.setattr(randaugment, 'OPS', logged)
  rng, calls = np.random.default_rng(0), 2000
  for probability in (0.0, 0.5, 1.0):
    log.clear()
    transform = randaugment.randaugment(probability, 2, 9)
    image = Image.new('L', (1, 1))
    outs = [transform(image, rng).getpixel((0, 0)) for _ in range(calls)]
    changed = outs.count(2)
    assert changed + outs.count(0) == calls
    assert len(log) == 2 * changed
    # Exact at 0 and 1; five deviations of a fair coin between.
    deviation = math.sqrt(calls * probability * (1 - probability))
    assert abs(changed - probability * calls) <= 5 * deviation
  counts = np.array([[name for name, _ in log].count(name) for name in names])
  chi2 = float(np.sum((counts - counts.mean()) ** 2 / counts.mean()))
  assert chi2 < 13 + 5 * math.sqrt(2 * 13)  # Mean and deviation of χ²₁₃.
  shares = np.array([share for _, share in log])
  assert {*shares} == {-0.3, 0.3}
  assert abs(np.mean(shares > 0) - 0.5) < 5 * 0.5 / math.sqrt(len(log))
