import collections
import types

import numpy as np
import pytest
from scipy import stats

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import randaugment
from lipnext_jax.data import transforms


def make_image(dtype, height=8, width=8, channels=2, seed=3):
  rng = np.random.default_rng(seed)
  image = rng.integers(1, 256, size=(height, width, channels))
  return (image if dtype == np.uint8 else image / 255).astype(dtype)


def build(shape, resize=0, **fields):
  augment = config_lib.default_config().augment
  augment.update_from_flattened_dict(fields)
  return transforms.build_transforms(augment, shape, resize)


def are_uniform(counts):
  return stats.chisquare([*counts]).pvalue > 1e-6


def test_flip_mirrors_half_of_the_images():
  image, rng = make_image(np.uint8), np.random.default_rng(0)
  counts = collections.Counter(
    transforms.flip(image, rng).tobytes() for _ in range(400)
  )
  assert counts.keys() == {image.tobytes(), image[:, ::-1].tobytes()}
  assert are_uniform(counts.values())


def fixed(geometry, shift):
  """Returns a generator with given draws: [angle, zooms, shear] and shift."""
  draws = iter([np.array(geometry, float), np.array(shift, float)])
  return types.SimpleNamespace(
    uniform=lambda low, high, size: next(draws).reshape(size)
  )


def test_affine_moves_turns_and_zooms():
  image = make_image(np.float32)
  move = transforms.affine(1, 1, 50, 0)
  out = move(image, fixed([0, 0, 0, 0], [1, -2]))
  expected = np.zeros_like(image)
  expected[:-1, 2:] = image[1:, :-2]  # Output (r, c) reads (r + 1, c − 2).
  np.testing.assert_allclose(out, expected, atol=1e-6)
  assert not move(image, fixed([0, 0, 0, 0], [50, 0])).any()
  # One of the two quarter turns, exactly; float32 weights round to 1e-6.
  out = transforms.affine(90, 0, 0, 0)(image, fixed([1, 0, 0, 0], [0, 0]))
  turns = [np.rot90(image, k) for k in (1, 3)]
  assert min(np.abs(out - turn).max() for turn in turns) < 1e-5
  # exp(log 2): the output at distance d from the centre reads distance 2d.
  image = make_image(np.float32, 9, 9)
  zoom = transforms.affine(0, np.log(2), 0, 0)
  out = zoom(image, fixed([0, 1, 1, 0], [0, 0]))
  np.testing.assert_allclose(out[2:7, 2:7], image[::2, ::2], atol=1e-5)
  assert not out[0].any()


def test_affine_keeps_range_shape_and_dtype():
  rng = np.random.default_rng(0)
  for dtype, top in ((np.uint8, 255), (np.float32, 1)):
    for seed in range(20):
      image = make_image(dtype, seed=seed)
      out = transforms.affine(30, 0.3, 3, 1.0)(image, rng)
      assert (out.shape, out.dtype) == (image.shape, image.dtype)
      assert 0 <= out.min() <= out.max() <= top


def test_warp_bends_without_moving_on_average():
  ramp, rng = np.indices((9, 9, 1))[0] / np.float32(8), np.random.default_rng(0)
  warp = transforms.affine(0, 0, 0, 0.5)
  inner = np.array([warp(ramp, rng)[4, 4, 0] for _ in range(500)])
  # The centre reads row 4 + N(0, 0.5²), i.e. 0.5 ± 0.5/8 on the ramp.
  assert abs(inner.mean() - 0.5) < 5 * 0.0625 / 500**0.5
  assert abs(inner.std() - 0.0625) < 0.01


def test_build_transforms_reads_every_field():
  assert build((8, 8, 3)) == []
  image, rng = make_image(np.uint8, channels=3), np.random.default_rng(0)
  for field, value in {
    'rotate': 5.0,
    'scale': 0.1,
    'translate': 1.0,
    'warp': 0.5,
    'crop_padding': 1,
    'flip': True,
    'randaugment.probability': 1.0,
  }.items():
    (transform,) = build((8, 8, 3), **{field: value})
    outs = [transform(image, rng) for _ in range(20)]
    assert any(not np.array_equal(out, image) for out in outs), field


def scale(image, size):
  scaled = images.resize_shorter_side(images.from_array(image), size)
  return images.to_array(scaled)


def run(steps, image, seed):
  rng = np.random.default_rng(seed)
  for step in steps:
    image = step(image, rng)
  return image


def test_steps_follow_in_the_order_of_the_recipes():
  """ImageNet: resize, RandAugment, crop, flip. CIFAR: crop, flip, RandAugment.

  The same steps, written out, from the same generator.
  """
  always = randaugment.randaugment(1.0, 2, 9)
  image = make_image(np.uint8, 30, 40, 3)
  fields = {'randaugment.probability': 1.0, 'flip': True}
  sizes = {'resize.min': 12, 'resize.max': 16}
  imagenet = build((9, 9, 3), **fields, **sizes)
  cifar = build(image.shape, **fields, crop_padding=2)
  for seed in range(10):
    rng = np.random.default_rng(seed)
    scaled = images.from_array(scale(image, int(rng.integers(12, 17))))
    expected = images.to_array(always(scaled, rng))
    expected = transforms.flip(transforms.crop_to(9, 9)(expected, rng), rng)
    np.testing.assert_array_equal(run(imagenet, image, seed), expected)
    rng = np.random.default_rng(seed)
    expected = transforms.flip(transforms.crop(2)(image, rng), rng)
    expected = images.to_array(always(images.from_array(expected), rng))
    np.testing.assert_array_equal(run(cifar, image, seed), expected)


def test_without_a_range_training_scales_as_evaluation_does():
  """The scale is fixed, and the crop is random."""
  image = make_image(np.uint8, 30, 40, 3)
  steps = build((9, 9, 3), resize=12)
  windows = {
    scale(image, 12)[top : top + 9, left : left + 9].tobytes()
    for top, left in np.ndindex(4, 8)
  }
  seen = {run(steps, image, seed).tobytes() for seed in range(200)}
  assert transforms.resize_center_crop(image, 12, 9).tobytes() in seen
  assert 20 < len(seen) <= len(seen | windows) == len(windows) == 32
  # A crop larger than the smallest image is refused.
  with pytest.raises(errors.ConfigError, match=r'resize\.min=8.*at least 9'):
    build((9, 9, 3), **{'resize.min': 8, 'resize.max': 9})


def windows_of(transform, height, width):
  """Returns how often each window was cropped in 2000 draws."""
  # Each pixel holds its position + 1, so that padding is told apart.
  image = np.stack(np.mgrid[:height, :width] + 1, axis=-1).astype(np.uint8)
  rng, counts = np.random.default_rng(0), collections.Counter()
  for _ in range(2000):
    out = transform(image, rng)
    inside = np.argwhere(out[..., 0] > 0)[0]  # Some pixel of the image.
    counts[tuple(out[tuple(inside)].astype(int) - 1 - inside)] += 1
  return counts.values()


def biased(image, rng):
  """Crops near the middle more often than elsewhere."""
  top, left = (rng.integers(3, size=2) + rng.integers(3, size=2)).tolist()
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  return padded[top : top + 6, left : left + 6]


def test_crops_are_uniform_over_all_windows():
  for transform, height, width, windows, uniform in (
    (transforms.crop(2), 6, 6, 25, True),
    (transforms.crop_to(3, 5), 7, 8, 20, True),
    (biased, 6, 6, 25, False),  # Every window occurs, and it is noticed.
  ):
    counts = windows_of(transform, height, width)
    assert len(counts) == windows
    assert are_uniform(counts) == uniform


def test_resize_draws_every_size_equally_often():
  picture = images.from_array(np.zeros((10, 20, 1), np.uint8))
  rng = np.random.default_rng(0)
  resize = transforms.random_resize(5, 12)
  counts = collections.Counter(resize(picture, rng).height for _ in range(2000))
  assert sorted(counts) == [*range(5, 13)]
  assert are_uniform(counts.values())


def test_resize_center_crop_cuts_the_middle():
  # After resizing the shorter side to 12 and cropping 9: offsets as
  # torchvision's int(round((side − 9) / 2)), 1.5 → 2 and 2.5 → 2.
  for height, width, top, left in (
    (12, 12, 2, 2),
    (12, 14, 2, 2),
    (24, 34, 2, 4),
    (34, 24, 4, 2),
  ):
    image = make_image(np.uint8, height, width, 3)
    out = transforms.resize_center_crop(image, 12, 9)
    wanted = scale(image, 12)[top : top + 9, left : left + 9]
    np.testing.assert_array_equal(out, wanted)
