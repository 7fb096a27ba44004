import numpy as np
from PIL import Image
import pytest

from lipnext_jax.data import pillow


def triangle_weights(length, target):
  """[target, length] rows of the antialiased bilinear filter, from its text.

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


def random_image(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(256, size=(height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize('channels', [1, 3])
def test_arrays_survive_the_round_trip(channels):
  image = random_image(5, 7, channels)
  np.testing.assert_array_equal(
    pillow.to_array(pillow.from_array(image)), image
  )


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 2), np.uint8),
  ],
)
def test_other_images_are_refused_by_shape(image):
  with pytest.raises(ValueError, match='is no uint8'):
    pillow.from_array(image)


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


def test_resizing_without_antialiasing_would_be_noticed():
  image = random_image(37, 50)
  plain = Image.fromarray(image).resize((27, 20), Image.Resampling.NEAREST)
  oracle = resize_oracle(image, 20, 27)
  assert np.abs(np.asarray(plain) - oracle).max() > 20


def test_no_image_is_scaled_beyond_the_limit_of_pixels():
  """One by 8000 pixels are a file of a hundred bytes; scaled, two gigabytes."""
  thin = Image.new('RGB', (1, 8000))
  with pytest.raises(pillow.TooLargeError) as info:
    pillow.resize_shorter_side(thin, 256)
  text = str(info.value)
  assert '1×8000 pixels, which become 256×2048000' in text
  assert 'crop it' in text
  with pytest.raises(pillow.TooLargeError):
    pillow.resize_shorter_side(Image.new('RGB', (60_000, 1)), 256)
  # Up to the limit, as before.
  longest = pillow.MAX_PIXELS // (12 * 12)
  scaled = pillow.resize_shorter_side(Image.new('L', (1, longest)), 12)
  assert scaled.size == (12, 12 * longest)
  with pytest.raises(pillow.TooLargeError):
    pillow.resize_shorter_side(Image.new('L', (1, longest + 1)), 12)
