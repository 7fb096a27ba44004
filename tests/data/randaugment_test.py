"""Compares every operation with an oracle written from its definition.

The oracles work in float64 on arrays [h, w, ch] and share nothing with Pillow.
A pixel whose real value lies within `NEAR` of a rounding boundary may come out
either way: Pillow computes in float32 and in 16 bit fixed point.
"""

import collections
import functools
import itertools
import math

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
from scipy import stats

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


def apply(image, name, share):
  return images.to_array(randaugment.OPS[name](images.from_array(image), share))


# An oracle is a function of an image and a signed strength a in [−1, 1]. It
# returns the values that each pixel may have, [number, h, w, ch].


def moved(source):
  """Reads each pixel (x, y) at the position source(x, y, a, w, h)."""

  def oracle(image, a):
    # Pixel (i, j) covers [j, j + 1) × [i, i + 1); outside is black.
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w] + 0.5
    x, y = source(x, y, a, w, h)
    values = []
    for dx, dy in itertools.product((-NEAR, NEAR), repeat=2):
      i = np.floor(y + dy).astype(int).clip(-1, h) + 1
      j = np.floor(x + dx).astype(int).clip(-1, w) + 1
      values.append(framed[i, j])
    return np.stack(values)

  return oracle


def shift(a, side):
  return math.copysign(math.floor(150 / 331 * side * abs(a)), a)


def turn_back(x, y, a, w, h):
  """Rotate is counter-clockwise on a screen whose y axis points down."""
  cos, sin = math.cos(math.radians(30 * a)), math.sin(math.radians(30 * a))
  x, y = x - w / 2, y - h / 2
  return cos * x - sin * y + w / 2, sin * x + cos * y + h / 2


def truncated(real):
  """Truncates real values to bytes; both of two that are close."""
  return np.stack(
    [np.floor(np.clip(real + d, 0, 255)).astype(int) for d in (-NEAR, NEAR)]
  )


def blended(*degenerates):
  """Blends with any of some images, which the weight 0 would leave."""

  def oracle(image, a):
    image = image.astype(float)
    others = [degenerate(image) for degenerate in degenerates]
    reals = [other + (1 + 0.9 * a) * (image - other) for other in others]
    return np.concatenate([*map(truncated, reals)])

  return oracle


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


def posterize(image, a):
  dropped = 2 ** round(4 * abs(a))
  return (image // dropped * dropped)[None]


def solarize(image, a):
  inverted = 255 - image.astype(int)
  return np.where(image >= 255 * (1 - abs(a)), inverted, image)[None]


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


ORACLES = {
  'Identity': lambda image, _: image[None],
  'ShearX': moved(lambda x, y, a, w, h: (x + 0.3 * a * y, y)),
  'ShearY': moved(lambda x, y, a, w, h: (x, y + 0.3 * a * x)),
  'TranslateX': moved(lambda x, y, a, w, h: (x - shift(a, w), y)),
  'TranslateY': moved(lambda x, y, a, w, h: (x, y - shift(a, h))),
  'Rotate': moved(turn_back),
  'Brightness': blended(lambda image: np.zeros(image.shape)),
  # Three 16 bit coefficients, each off by at most 2⁻¹⁷, times at most 255.
  'Color': blended(
    lambda image: grey(image, -0.006), lambda image: grey(image, 0.006)
  ),
  'Contrast': blended(lambda image: math.floor(grey(image).mean() + 0.5)),
  'Sharpness': blended(smooth),
  'Posterize': posterize,
  'Solarize': solarize,
  'AutoContrast': auto_contrast,
  'Equalize': equalize,
}


def mismatches(image, name, share, out):
  """Returns the share of pixels that equal no value of the oracle."""
  return np.mean(~np.any(ORACLES[name](image, share) == out, axis=0))


@pytest.mark.parametrize('name', randaugment.OPS)
def test_pixels_are_the_documented_ones(name):
  assert randaugment.OPS.keys() == ORACLES.keys()
  shapes = [(23, 31, 1), (32, 32, 3), (40, 17, 3), (23, 31, 3), (40, 17, 1)]
  for shape, magnitude, sign in itertools.product(
    shapes, (0, 1, 9, 17, 30), (1, -1)
  ):
    image, share = make_image(*shape), sign * magnitude / 30
    out = apply(image, name, share)
    assert (out.dtype, out.shape) == (np.uint8, shape)
    assert not mismatches(image, name, share, out)


def test_wrong_operations_are_noticed():
  image = make_image()
  for name, mistaken, magnitude in (
    ('ShearX', 'ShearX', -9),
    ('ShearY', 'ShearX', 9),
    ('TranslateX', 'TranslateX', 11),
    ('TranslateY', 'TranslateX', 9),
    ('Rotate', 'Rotate', -9),
    ('Brightness', 'Contrast', 9),
    ('Color', 'Color', 10),
    ('Contrast', 'Contrast', 8),
    ('Sharpness', 'Sharpness', -9),
    ('Posterize', 'Posterize', 17),
    ('Solarize', 'Solarize', 10),
    ('AutoContrast', 'Identity', 9),
    ('Equalize', 'AutoContrast', 9),
  ):
    out = apply(image, mistaken, magnitude / 30)
    assert mismatches(image, name, 0.3, out) > 0.02, name


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
  counts = collections.Counter(log)
  assert counts.keys() == {*itertools.product(names, (-0.3, 0.3))}
  assert stats.chisquare([*counts.values()]).pvalue > 1e-6
