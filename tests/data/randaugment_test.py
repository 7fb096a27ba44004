"""Compares every operation with an oracle written from its definition.

The oracles work in float64 on arrays [h, w, ch] and share nothing with Pillow.
"""

import collections
import functools
import itertools
import math

import numpy as np
import pytest
from scipy import ndimage
from scipy import stats

from lipnext_jax.data import images
from lipnext_jax.data import randaugment

# A value this close to a rounding boundary may come out either way: Pillow's
# blends are float32 of values below 2·255, each rounded twice; its sampling has
# coefficients of 16 bits, times at most 2·40 pixels. Both err by less.
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


# An oracle is a function of an image, a signed strength a in [−1, 1], and two
# numbers ±NEAR, which move what it rounds. It returns [h, w, ch].


def moved(source):
  """Reads each pixel (x, y) at the position source(x, y, a, w, h)."""

  def oracle(image, a, dx, dy):
    # Pixel (i, j) covers [j, j + 1) × [i, i + 1); outside is black.
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w] + 0.5
    x, y = source(x, y, a, w, h)
    i = np.floor(y + dy).astype(int).clip(-1, h) + 1
    j = np.floor(x + dx).astype(int).clip(-1, w) + 1
    return framed[i, j]

  return oracle


def shift(a, side):
  return math.copysign(math.floor(150 / 331 * side * abs(a)), a)


def turn_back(x, y, a, w, h):
  """Rotate is counter-clockwise on a screen whose y axis points down."""
  cos, sin = math.cos(math.radians(30 * a)), math.sin(math.radians(30 * a))
  x, y = x - w / 2, y - h / 2
  return cos * x - sin * y + w / 2, sin * x + cos * y + h / 2


def blended(degenerate):
  """Blends with an image that the weight 0 would leave, and truncates."""

  def oracle(image, a, d, e):
    image = image.astype(float)
    other = degenerate(image, d)
    real = other + (1 + 0.9 * a) * (image - other)
    return np.floor(real + e).clip(0, 255)

  return oracle


def grey(image, d=0.0):
  """Returns the rounded ITU-R 601-2 luma; a grey image is unchanged."""
  if image.shape[2] == 1:
    return image
  luma = image @ np.array([299, 587, 114]) / 1000
  # Three 16 bit coefficients, each off by at most 2⁻¹⁷, times at most 255.
  return np.floor(luma + 0.5 + 3 * d)[..., None]


def smooth(image, _):
  """Smooths by (1 1 1; 1 5 1; 1 1 1)/13, and keeps the edges."""
  out = image.copy()
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None]
  total = ndimage.correlate(image, kernel)
  out[1:-1, 1:-1] = np.floor(total[1:-1, 1:-1] / 13 + 0.5)
  return out


def posterize(image, a, *_):
  dropped = 2 ** round(4 * abs(a))
  return image // dropped * dropped


def auto_contrast(image, _, d, __):
  low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
  stretched = (image - low) * 255 / np.where(high > low, high - low, 1)
  return np.floor(np.where(high > low, stretched, image) + d).clip(0, 255)


def equalize(image, *_):
  """Maps values by the cumulative histogram, in steps of its 255th part."""
  out = image.copy()
  for channel in range(image.shape[2]):
    plane = image[..., channel]
    step = np.sum(plane < plane.max()) // 255
    if step:  # Else there are too few pixels to equalise.
      below = np.searchsorted(np.sort(plane.ravel()), np.arange(256))
      table = np.minimum((step // 2 + below) // step, 255)
      out[..., channel] = table[plane]
  return out


ORACLES = {
  'Identity': lambda image, *_: image,
  'ShearX': moved(lambda x, y, a, w, h: (x + 0.3 * a * y, y)),
  'ShearY': moved(lambda x, y, a, w, h: (x, y + 0.3 * a * x)),
  'TranslateX': moved(lambda x, y, a, w, h: (x - shift(a, w), y)),
  'TranslateY': moved(lambda x, y, a, w, h: (x, y - shift(a, h))),
  'Rotate': moved(turn_back),
  'Brightness': blended(lambda image, _: 0.0),
  'Color': blended(grey),
  'Contrast': blended(lambda image, _: math.floor(grey(image).mean() + 0.5)),
  'Sharpness': blended(smooth),
  'Posterize': posterize,
  'Solarize': lambda image, a, *_: np.where(
    image >= 255 * (1 - abs(a)), 255 - image, image
  ),
  'AutoContrast': auto_contrast,
  'Equalize': equalize,
}


def mismatches(image, name, share, out):
  """Returns the share of pixels that equal no value of the oracle."""
  moves = itertools.product((-NEAR, NEAR), repeat=2)
  values = [ORACLES[name](image, share, *move) for move in moves]
  return np.mean(~np.any(np.equal(values, out), axis=0))


@pytest.mark.parametrize('name', randaugment.OPS)
def test_pixels_are_the_documented_ones(name):
  assert randaugment.OPS.keys() == ORACLES.keys()
  shapes = [(23, 31, 1), (32, 32, 3), (40, 17, 3), (23, 31, 3), (40, 17, 1)]
  for shape, magnitude, sign in itertools.product(
    shapes, (0, 1, 9, 13, 30), (1, -1)
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
  """An image is the tuple of what was done to it."""

  def op(name, image, share):
    return *image, (name, share)

  names = list(randaugment.OPS)
  logged = {name: functools.partial(op, name) for name in names}
  monkeypatch.setattr(randaugment, 'OPS', logged)
  rng, calls = np.random.default_rng(0), 2000
  for probability in (0.0, 0.5, 1.0):
    transform = randaugment.randaugment(probability, 2, 9)
    changed = [*filter(None, (transform((), rng) for _ in range(calls)))]
    assert all(len(image) == 2 for image in changed)
    # Exact at 0 and 1; five deviations of a fair coin between.
    deviation = math.sqrt(calls * probability * (1 - probability))
    assert abs(len(changed) - probability * calls) <= 5 * deviation
  counts = collections.Counter(itertools.chain(*changed))
  assert counts.keys() == {*itertools.product(names, (-0.3, 0.3))}
  assert stats.chisquare([*counts.values()]).pvalue > 1e-6
