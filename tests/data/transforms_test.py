import collections
import functools
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


def scale(image, size):
  scaled = images.resize_shorter_side(images.from_array(image), size)
  return images.to_array(scaled)


def run(steps, image, seed):
  """Applies steps; `seed` may be a generator."""
  rng = np.random.default_rng(seed)
  for step in steps:
    image = step(image, rng)
  return image


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
    steps = build((8, 8, 3), **{field: value})
    outs = [run(steps, image, rng) for _ in range(20)]
    assert len(steps) == 1
    assert any(not np.array_equal(out, image) for out in outs), field
  # A crop larger than the smallest image is refused.
  with pytest.raises(errors.ConfigError, match=r'resize\.min=8.*at least 9'):
    build((9, 9, 3), **{'resize.min': 8, 'resize.max': 9})


def test_steps_follow_in_the_order_of_the_recipes():
  image = make_image(np.uint8, 30, 40, 3)
  fields = {'rotate': 5.0, 'flip': True, 'randaugment.probability': 1.0}
  sizes = {'resize.min': 12, 'resize.max': 16}
  turn = transforms.affine(5.0, 0, 0, 0)
  resize = transforms.on_pillow([transforms.random_resize(12, 16)])
  always = transforms.on_pillow([randaugment.randaugment(1.0, 2, 9)])
  cut, flip = transforms.crop_to(9, 9), transforms.flip
  for steps, wanted in (
    (build((9, 9, 3), **fields, **sizes), [turn, resize, always, cut, flip]),
    (
      build(image.shape, **fields, crop_padding=2),
      [turn, transforms.crop(2), flip, always],
    ),
  ):
    for seed in range(10):  # The same draws.
      expected = run(wanted, image, seed)
      np.testing.assert_array_equal(run(steps, image, seed), expected)


def windows(image, height, width):
  """Returns every window of this size."""
  places = np.ndindex(image.shape[0] - height + 1, image.shape[1] - width + 1)
  return [image[i : i + height, j : j + width] for i, j in places]


def biased(image, rng):
  """Crops near the middle more often than elsewhere."""
  top, left = rng.integers(3, size=2) + rng.integers(3, size=2)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  return windows(padded, *image.shape[:2])[5 * top + left]


def test_every_outcome_is_drawn_equally_often():
  image = make_image(np.uint8, 10, 14, 3)
  padded = windows(np.pad(image, ((2, 2), (2, 2), (0, 0))), 10, 14)
  resize = transforms.on_pillow([transforms.random_resize(5, 12)])
  # Without a range, training scales as evaluation does.
  steps = build((4, 4, 3), resize=6)
  for transform, outcomes, is_uniform in (
    (transforms.flip, [image, image[:, ::-1]], True),
    (transforms.crop(2), padded, True),
    (transforms.crop_to(8, 10), windows(image, 8, 10), True),
    (resize, [scale(image, size) for size in range(5, 13)], True),
    (functools.partial(run, steps), windows(scale(image, 6), 4, 4), True),
    (biased, padded, False),  # Every window occurs, and it is noticed.
  ):
    rng, counts = np.random.default_rng(0), collections.Counter()
    for _ in range(2000):
      counts[transform(image, rng).tobytes()] += 1
    assert counts.keys() == {outcome.tobytes() for outcome in outcomes}
    assert (stats.chisquare([*counts.values()]).pvalue > 1e-6) == is_uniform


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
