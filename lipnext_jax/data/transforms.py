"""Random train transforms of one image, as functions of a NumPy generator.

Images are [H, W, ch], uint8 or float32 in [0, 1]; shape and dtype are kept.
No transform rescales pixel values: that would rescale ε.
"""

from collections.abc import Callable

import ml_collections
import numpy as np

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def crop(padding: int) -> Transform:
  """Zero-pads by `padding` pixels on all sides, crops back at random.

  >>> image = np.ones((4, 4, 1), np.uint8)
  >>> crop(2)(image, np.random.default_rng(0)).shape
  (4, 4, 1)
  """

  def apply(image, rng):
    top, left = rng.integers(2 * padding + 1, size=2)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = image.shape[:2]
    return padded[top : top + height, left : left + width]

  return apply


def flip() -> Transform:
  """Mirrors left and right with probability 1/2.

  >>> image = np.arange(2).reshape(1, 2, 1)
  >>> rng = np.random.default_rng(0)
  >>> sorted({flip()(image, rng)[0, 0, 0].item() for _ in range(20)})
  [0, 1]
  """

  def apply(image, rng):
    return image[:, ::-1] if rng.random() < 0.5 else image

  return apply


def affine(
  rotate: float, scale: float, translate: float, warp: float
) -> Transform:
  """Small geometric changes with bilinear resampling, zeros outside.

  Args:
    rotate: up to so many degrees, either way.
    scale: log of the largest zoom of each axis; also the largest shear.
    translate: up to so many pixels, either way, per axis.
    warp: standard deviation, in pixels, of the displacements of a 3×3 grid
      of control points, interpolated bilinearly over the image.

  >>> image = np.random.default_rng(0).random((8, 8, 1)).astype(np.float32)
  >>> same = affine(0, 0, 0, 0)(image, np.random.default_rng(0))
  >>> bool(np.allclose(same, image, atol=1e-6))
  True
  """

  def apply(image, rng):
    height, width = image.shape[:2]
    centre = np.array([height - 1, width - 1]) / 2
    grid = np.moveaxis(np.mgrid[:height, :width], 0, -1) - centre  # [H, W, 2]
    angle = np.deg2rad(rng.uniform(-rotate, rotate))
    zoom = np.exp(rng.uniform(-scale, scale, size=2))
    shear = rng.uniform(-scale, scale)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array(
      [[zoom[0] * cos, shear - zoom[0] * sin], [zoom[1] * sin, zoom[1] * cos]]
    )
    shift = rng.uniform(-translate, translate, size=2)
    points = grid @ matrix.T + centre + shift
    if warp:
      rows = _hat_weights(height)  # [H, 3]
      columns = _hat_weights(width)
      control = rng.normal(scale=warp, size=(3, 3, 2))
      points += np.einsum('hi,wj,ijd->hwd', rows, columns, control)
    return _bilinear(image, points)

  return apply


def _hat_weights(size: int) -> np.ndarray:
  """Linear interpolation weights [size, 3] from 3 points spread over `size`."""
  position = np.linspace(0, 2, size)
  return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(3)))


def _bilinear(image: np.ndarray, points: np.ndarray) -> np.ndarray:
  """The image at `points` [H, W, 2] (row, column); zero outside."""
  height, width = image.shape[:2]
  # Two zero pixels around: whatever lies further out reads the outer one.
  padded = np.pad(image.astype(np.float32), ((2, 2), (2, 2), (0, 0)))
  row = np.clip(points[..., 0] + 2, 0, height + 2.999)
  column = np.clip(points[..., 1] + 2, 0, width + 2.999)
  i, j = row.astype(int), column.astype(int)
  v, u = (row - i)[..., None], (column - j)[..., None]
  top = (1 - u) * padded[i, j] + u * padded[i, j + 1]
  bottom = (1 - u) * padded[i + 1, j] + u * padded[i + 1, j + 1]
  out = (1 - v) * top + v * bottom
  if image.dtype == np.uint8:
    return np.rint(out).astype(np.uint8)
  return out.astype(image.dtype)


def build_transforms(augment: ml_collections.ConfigDict) -> list[Transform]:
  """The transforms of `config.augment`, in the order they apply."""
  transforms = []
  geometry = (augment.rotate, augment.scale, augment.translate, augment.warp)
  if any(geometry):
    transforms.append(affine(*geometry))
  if augment.crop_padding:
    transforms.append(crop(augment.crop_padding))
  if augment.flip:
    transforms.append(flip())
  return transforms
