import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import pillow


def triangle_weights(length, target):
  """Returns the antialiased bilinear filter [target, length] by its definition.

  Output pixel i has its centre at (i + ½)·length/target; a triangle of half
  width max(1, length/target) around it weighs the input pixels' centres.
  """
  scale = length / target
  support = max(1.0, scale)
  centres = (np.arange(target) + 0.5) * scale
  distance = np.abs(np.arange(length)[None] + 0.5 - centres[:, None])
  weights = np.maximum(0, 1 - distance / support)
  return weights / weights.sum(axis=1, keepdims=True)


def resize_oracle(image, height, width):
  rows = triangle_weights(image.shape[0], height)
  columns = triangle_weights(image.shape[1], width)
  return np.einsum('ih,jw,hwc->ijc', rows, columns, image.astype(np.float64))


def random_image(height, width, channels=3):
  rng = np.random.default_rng(0)
  return rng.integers(256, size=(height, width, channels)).astype(np.uint8)


def test_arrays_survive_the_round_trip_and_others_are_refused():
  for channels in (1, 3):
    image = random_image(5, 7, channels)
    again = pillow.to_array(pillow.from_array(image))
    np.testing.assert_array_equal(again, image)
  for shape, dtype in (
    ((4, 4, 3), np.float32),
    ((4, 4), np.uint8),
    ((4, 4, 2), np.uint8),
  ):
    with pytest.raises(ValueError, match='is not uint8'):
      pillow.from_array(np.zeros(shape, dtype))


@pytest.mark.parametrize(
  ('height', 'width', 'size', 'expected'),
  [
    (37, 50, 20, (20, 27)),  # 20·50/37 = 27.03.
    (50, 37, 20, (27, 20)),
    (30, 59, 20, (20, 39)),  # 20·59/30 = 39.33: down.
    (10, 12, 25, (25, 30)),  # Enlarged.
    (20, 31, 20, (20, 31)),  # Untouched.
  ],
)
def test_the_shorter_side_is_resized_with_the_antialiased_triangle(
  height, width, size, expected
):
  image = random_image(height, width)
  scaled = pillow.resize_shorter_side(pillow.from_array(image), size)
  out = pillow.to_array(scaled)
  assert out.shape[:2] == expected
  oracle = resize_oracle(image, *expected)
  # Each of the two passes rounds to a whole grey value, its weights to 22
  # bits (Pillow's fixed point): ½ + ½ and a little.
  assert np.abs(out - oracle).max() < 1.01
  if expected < (height, width):  # Without antialiasing, it would be noticed.
    plain = Image.fromarray(image).resize(
      expected[::-1], Image.Resampling.NEAREST
    )
    assert np.abs(np.asarray(plain) - oracle).max() > 20


def test_no_image_is_scaled_beyond_the_limit_of_pixels(monkeypatch):
  """A file of 1×8000 pixels takes a hundred bytes; scaled, two gigabytes."""
  thin = Image.new('RGB', (1, 8000))
  with pytest.raises(pillow.TooLargeError) as info:
    pillow.resize_shorter_side(thin, 256)
  text = str(info.value)
  assert '1×8000 pixels, which become 256×2048000' in text
  assert 'crop it' in text
  monkeypatch.setattr(pillow, 'MAX_PIXELS', 12 * 12 * 100)
  scaled = pillow.resize_shorter_side(Image.new('L', (1, 100)), 12)
  assert scaled.size == (12, 12 * 100)
  with pytest.raises(pillow.TooLargeError):
    pillow.resize_shorter_side(Image.new('L', (1, 101)), 12)
