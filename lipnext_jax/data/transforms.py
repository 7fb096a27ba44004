"""Transforms of one image: random for training, deterministic for evaluation.

Images are [H, W, ch], uint8 or float32 in [0, 1], and keep their dtype. A
random transform is a function of an image and a NumPy generator. No transform
rescales pixel values, because that would rescale ε.
"""

from collections.abc import Callable
from collections.abc import Sequence

import ml_collections
import numpy as np
from scipy import ndimage

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import randaugment

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def crop(padding: int) -> Transform:
  """Returns a transform that pads with zeros and crops back at random."""

  def apply(image, rng):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return crop_to(*image.shape[:2])(padded, rng)

  return apply


def crop_to(height: int, width: int) -> Transform:
  """Returns a transform that crops a window of this size at random."""

  def apply(image, rng):
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]

  return apply


def random_resize(smallest: int, largest: int) -> randaugment.PillowTransform:
  """Returns a transform that scales the shorter side to a random size."""

  def apply(image, rng):
    size = rng.integers(smallest, largest + 1)
    return images.resize_shorter_side(image, int(size))

  return apply


def on_pillow(steps: Sequence[randaugment.PillowTransform]) -> Transform:
  """Joins transforms of Pillow images into one transform of arrays."""

  def apply(image, rng):
    picture = images.from_array(image)
    for step in steps:
      picture = step(picture, rng)
    return images.to_array(picture)

  return apply


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Mirrors an image left and right with probability 1/2."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def affine(
  rotate: float, scale: float, translate: float, warp: float
) -> Transform:
  """Returns a random affine transform and warp: bilinear, zero outside.

  Args:
    rotate: largest rotation in either direction, in degrees.
    scale: logarithm of the largest zoom of an axis, and the largest shear.
    translate: largest shift of an axis in either direction, in pixels.
    warp: standard deviation in pixels of the displacements of a 3×3 grid of
      control points, which are interpolated bilinearly over the image.
  """
  largest = np.array([np.deg2rad(rotate), scale, scale, scale])

  def apply(image, rng):
    size = np.array(image.shape[:2])[:, None]
    pixels = np.indices(image.shape[:2]).reshape(2, -1)
    centre = (size - 1) / 2
    angle, *zooms, shear = largest * rng.uniform(-1, 1, size=4)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.exp(zooms)[:, None] * [[cos, -sin], [sin, cos]]
    matrix[0, 1] += shear
    shift = rng.uniform(-translate, translate, 2)[:, None]
    points = matrix @ (pixels - centre) + centre + shift
    if warp:
      control = rng.normal(scale=warp, size=(3, 3, 2))
      places = 2 * pixels / np.maximum(size - 1, 1)  # In the 3×3 grid.
      points += _sample(control, places).T
    out = _sample(image.astype(np.float32), points).reshape(image.shape)
    return np.rint(out).astype(np.uint8) if image.dtype == np.uint8 else out

  return apply


def _sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Interpolates an image at `points` [2, n] (row, column); zero outside."""
  channels = [
    ndimage.map_coordinates(channel, points, order=1, mode='grid-constant')
    for channel in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, axis=-1)


def resize_center_crop(image: np.ndarray, resize: int, size: int) -> np.ndarray:
  """Applies `Resize(resize)` and `CenterCrop(size)` as torchvision does.

  The offsets of the crop round half to even.

  Args:
    image: uint8 [H, W, ch] with 1 or 3 channels.
    resize: shorter side after the resize, in pixels.
    size: side of the square crop in pixels, at most `resize`.

  Raises:
    BadImageError: the scaled image would have too many pixels.

  >>> resize_center_crop(np.zeros((375, 500, 3), np.uint8), 256, 224).shape
  (224, 224, 3)
  """
  scaled = images.resize_shorter_side(images.from_array(image), resize)
  left = round((scaled.width - size) / 2)
  top = round((scaled.height - size) / 2)
  return images.to_array(scaled.crop((left, top, left + size, top + size)))


def build_transforms(
  augment: ml_collections.ConfigDict,
  image_shape: tuple[int, int, int],
  resize: int = 0,
) -> list[Transform]:
  """Builds the transforms of `config.augment`, in the order of application.

  The affine transform comes first. With a resize, as on ImageNet, the others
  are: resize, RandAugment, crop, flip. Without a resize, as on CIFAR, they are:
  crop, flip, RandAugment.

  Args:
    augment: `config.augment`.
    image_shape: [H, W, ch] of a transformed image.
    resize: shorter side if `augment.resize` gives no range; 0: no resize.

  Raises:
    ConfigError: the resize yields images smaller than `image_shape`.
  """
  height, width, _ = image_shape
  smallest, largest = augment.resize.min, augment.resize.max
  if not largest:
    smallest = largest = resize
  elif smallest < max(height, width):
    raise errors.ConfigError(
      'augment.resize.min',
      smallest,
      f'is below the {max(height, width)} pixels of the crop',
      f'choose at least {max(height, width)}',
    )
  geometry = (augment.rotate, augment.scale, augment.translate, augment.warp)
  first = [affine(*geometry)] if any(geometry) else []
  steps = [random_resize(smallest, largest)] if largest else []
  if augment.randaugment.probability:
    steps.append(randaugment.randaugment(**augment.randaugment))
  on_images = [on_pillow(steps)] if steps else []
  if largest:
    crops = [crop_to(height, width), *crop_and_flip(augment)]
    return [*first, *on_images, *crops]
  return [*first, *crop_and_flip(augment), *on_images]


def crop_and_flip(c: ml_collections.ConfigDict) -> list[Transform]:
  """Builds the transforms of `c.crop_padding` and `c.flip`."""
  crops = [crop(c.crop_padding)] if c.crop_padding else []
  return [*crops, flip] if c.flip else crops
