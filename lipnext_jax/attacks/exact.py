"""Exact tests of whether a point lies in a ball.

A point that is a unit in the last place too far away breaks no certificate.
Floats are integers times powers of two, so a squared distance is a rational
number. NumPy's widest floats, with an error bound, decide most comparisons;
integers decide those close to a tie.
"""

from collections.abc import Iterator
import fractions

import numpy as np

# Distance up to which an infinite radius is searched. No image is farther away,
# and every float format holds such numbers.
FARTHEST = 2.0**10
_BLOCK = 2**22  # Numbers in a block: 64 MiB in the widest floats.
# Below this, squares may underflow if the widest float is a double.
_SMALLEST_SQUARE = 2.0**-900


def _flat(values: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
  """Returns values [n, ...] as rows [n, d] of a dtype."""
  return np.reshape(values, (len(values), -1)).astype(dtype)


def _squares(images: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Computes ‖point − image‖² of every row in the widest floats."""
  squares = []
  for rows in blocks(images):
    x, y = (_flat(part[rows], np.longdouble) for part in (images, points))
    squares.append(np.sum((x - y) ** 2, axis=1))
  return np.concatenate(squares)


def squared_distance(x: np.ndarray, y: np.ndarray) -> fractions.Fraction:
  """Computes ‖x − y‖² of two finite arrays of any float dtype, exactly."""
  both = np.stack([np.ravel(x), np.ravel(y)]).astype(np.float64)
  mantissas, exponents = np.frexp(both)
  lowest = int(np.min(exponents, initial=0, where=mantissas != 0))
  # Three times as fast as `float.as_integer_ratio` of each number.
  integers = (mantissas * 2.0**53).astype(np.int64).astype(object)
  xs, ys = integers << np.maximum(exponents - lowest, 0).astype(object)
  return np.sum((xs - ys) ** 2) * fractions.Fraction(4) ** (lowest - 53)


def is_inside(
  images: np.ndarray, points: np.ndarray, radii: np.ndarray, *, closed: bool
) -> np.ndarray:
  """Returns whether each point lies in its ball, decided exactly.

  Args:
    images: [n, ...], any float dtype.
    points: [n, ...]; points that are not finite lie outside.
    radii: [n] float64, >= 0 or infinite, ℓ2 in the unit of the images.
    closed: whether the sphere belongs to the ball.

  Returns:
    [n] bool.

  >>> x, y, radii = np.zeros([3, 2]), np.array([[3, 4]] * 3), np.arange(4, 7)
  >>> is_inside(x, y, radii, closed=True).tolist()
  [False, True, True]
  """
  squares, r = _squares(images, points), np.asarray(radii, np.longdouble)
  limits, finite = r * r, np.isfinite(squares)
  inside = finite & (squares <= limits)
  # Each term of the sum rounds by at most 3 units, each addition and the limit
  # by one. The factor 2 covers the rounding of this expression.
  slack = 2 * (images[0].size + 4) * np.finfo(np.longdouble).eps
  largest = np.maximum(squares, limits)
  with np.errstate(invalid='ignore'):  # ∞ − ∞, for an infinite radius.
    unsure = np.abs(squares - limits) <= slack * largest
  unsure |= largest < _SMALLEST_SQUARE
  for i in np.flatnonzero(unsure & finite & np.isfinite(r)):
    square = squared_distance(images[i], points[i])
    limit = fractions.Fraction(float(radii[i])) ** 2
    inside[i] = square < limit or (closed and square == limit)
  return inside


def blocks(images: np.ndarray, copies: int = 1) -> Iterator[slice]:
  """Yields slices of images [n, ...], n > 0, that fit into memory.

  `copies` is the number of points per image that are processed at once.
  """
  rows = max(_BLOCK // (copies * max(images[0].size, 1)), 1)
  for start in range(0, len(images), rows):
    yield slice(start, start + rows)


def distances(images: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Computes ‖point − image‖ of every row, rounded: [n] float64."""
  return np.sqrt(_squares(images, points)).astype(np.float64)


def pull_inside(
  images: np.ndarray,
  points: np.ndarray,
  radii: np.ndarray,
  *,
  closed: bool,
  to_sphere: bool = False,
) -> np.ndarray:
  """Moves points outside their ball to its last representable point.

  Each point moves on the ray from its image.

  Args:
    images: [n, ...], whose dtype decides what is representable.
    points: [n, ...], any float dtype.
    radii: [n] float64, ℓ2 in the unit of the images.
    closed: whether the sphere belongs to the ball.
    to_sphere: whether to move points inside the ball outwards, too.

  Returns:
    [n, ...] in the dtype of the images, each row in its ball and at most
    `FARTHEST` away. It is the image if there is no other such point.
  """
  center = _flat(images, np.float64)
  delta = _flat(points, np.float64) - center
  delta = np.where(np.isfinite(delta), delta, 0)
  norms = np.linalg.norm(delta, axis=-1)
  radii = np.minimum(radii, FARTHEST)
  scale = np.divide(radii, norms, out=np.zeros(len(norms)), where=norms > 0)
  if not to_sphere:
    scale = np.minimum(scale, 1)

  def place(rows, scale):
    placed = center[rows] + scale[:, None] * delta[rows]
    return placed.astype(images.dtype).reshape(-1, *images.shape[1:])

  result = place(np.arange(len(images)), scale)
  left = np.flatnonzero(~is_inside(images, result, radii, closed=closed))
  step = float(np.spacing(np.ones((), images.dtype))) / 4
  while left.size:
    scale[left] *= max(1 - step, 0)
    moved = place(left, scale[left])
    result[left] = moved
    fits = is_inside(images[left], moved, radii[left], closed=closed)
    left = left[~fits & (scale[left] > 0)]
    step *= 2
  return result
