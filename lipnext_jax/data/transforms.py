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
from lipnext_jax.data import pillow
from lipnext_jax.data import randaugment

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def crop(padding: int) -> Transform:
  """Returns a transform that pads with zeros and crops back at random.

  Args:
    padding: number of zeros added on each side.
  """

  def apply(image, rng):
    top, left = rng.integers(2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = image.shape[:2]
    return padded[top : top + height, left : left + width]

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
    return pillow.resize_shorter_side(image, int(size))

  return apply


def on_pillow(steps: Sequence[randaugment.PillowTransform]) -> Transform:
  """Joins transforms of Pillow images into one transform of arrays."""

  def apply(image, rng):
    picture = pillow.from_array(image)
    for step in steps:
      picture = step(picture, rng)
    return pillow.to_array(picture)

  return apply


def flip() -> Transform:
  """Returns a transform that mirrors left and right with probability 1/2."""

  def apply(image, rng):
    return image[:, ::-1] if rng.random() < 0.5 else image

  return apply


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
    angle, zoom_row, zoom_column, shear = largest * rng.uniform(-1, 1, size=4)
    cos, sin = np.cos(angle), np.sin(angle)
    zoom_row, zoom_column = np.exp(zoom_row), np.exp(zoom_column)
    matrix = np.array(
      [[zoom_row * cos, shear - zoom_row * sin],
       [zoom_column * sin, zoom_column * cos]]
    )  # fmt: skip
    shift = rng.uniform(-translate, translate, 2)[:, None]
    points = matrix @ (pixels - centre) + centre + shift
    if warp:
      control = rng.normal(scale=warp, size=(3, 3, 2))
      places = 2 * pixels / np.maximum(size - 1, 1)  # In the 3×3 grid.
      points += _sample(control, places).T
    out = _sample(image.astype(np.float32), points).reshape(image.shape)
    return (np.rint(out) if image.dtype == np.uint8 else out).astype(
      image.dtype
    )

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

  The resize is bilinear and antialiased, and rounds the longer side down. The
  offsets of the crop round half to even.

  Args:
    image: uint8 [H, W, ch] with 1 or 3 channels.
    resize: shorter side after the resize, in pixels.
    size: side of the square crop in pixels, at most `resize`.

  Returns:
    uint8 [size, size, ch].

  Raises:
    ValueError: `size` is above `resize`.
    TooLargeError: the scaled image would have too many pixels.

  >>> resize_center_crop(np.zeros((375, 500, 3), np.uint8), 256, 224).shape
  (224, 224, 3)
  """
  if size > resize:
    raise ValueError(f'size={size} is above resize={resize}')
  scaled = pillow.resize_shorter_side(pillow.from_array(image), resize)
  left = round((scaled.width - size) / 2)
  top = round((scaled.height - size) / 2)
  return pillow.to_array(scaled.crop((left, top, left + size, top + size)))


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
    resize: shorter side in pixels if `augment.resize` gives no range, as in
      evaluation; 0: no resize.

  Raises:
    ConfigError: the resize yields images smaller than `image_shape`.
  """
  transforms: list[Transform] = []
  geometry = (augment.rotate, augment.scale, augment.translate, augment.warp)
  if any(geometry):
    transforms.append(affine(*geometry))
  on_images = []
  smallest, largest = augment.resize.min, augment.resize.max
  if not largest:
    smallest = largest = resize
  elif smallest < max(image_shape[:2]):
    raise errors.ConfigError(
      'augment.resize.min',
      smallest,
      f'is below the {max(image_shape[:2])} pixels of the crop',
      f'choose at least {max(image_shape[:2])}',
    )
  if largest:
    on_images.append(random_resize(smallest, largest))
  if augment.randaugment.probability:
    on_images.append(randaugment.randaugment(**augment.randaugment))
  if largest:
    transforms += [on_pillow(on_images), crop_to(*image_shape[:2])]
  transforms += crop_and_flip(augment)
  if on_images and not largest:
    transforms.append(on_pillow(on_images))
  return transforms


def crop_and_flip(c: ml_collections.ConfigDict) -> list[Transform]:
  """Builds the transforms of `c.crop_padding` and `c.flip`."""
  transforms = []
  if c.crop_padding:
    transforms.append(crop(c.crop_padding))
  if c.flip:
    transforms.append(flip())
  return transforms


def check_image(augment: ml_collections.ConfigDict, image: np.ndarray) -> None:
  """Checks that the transforms of `config.augment` fit an image of a dataset.

  Raises:
    ConfigError: a transform needs another dtype or number of channels.
  """
  for field, used in (
    ('augment.resize.max', augment.resize.max),
    ('augment.randaugment.probability', augment.randaugment.probability),
  ):
    if used and (image.dtype != np.uint8 or image.shape[2] not in (1, 3)):
      raise errors.ConfigError(
        field,
        used,
        'needs uint8 images with 1 or 3 channels, and the dataset has '
        f'{image.dtype}{list(image.shape)}',
        'set it to 0',
      )
