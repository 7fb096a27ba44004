from fractions import Fraction
import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_dtypes
import numpy as np
import pytest

from lipnext_jax.attacks import exact
from tests.attacks import targets

# Of every magnitude that a double has, subnormal ones included.
numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)


def rational(x, y):
  terms = zip(np.ravel(x).tolist(), np.ravel(y).tolist(), strict=True)
  return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in terms)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_squared_distance_is_exact(pairs):
  x, y = np.array(pairs).T
  assert exact.squared_distance(x, y) == rational(x, y)


def signs(x, y, radii):
  """Returns −1 inside the open ball, 0 on the sphere, 1 outside."""
  inside = [exact.is_inside(x, y, radii, closed=c) for c in (True, False)]
  return (1 - np.sum(inside, axis=0)).tolist()


def check_signs(x, y, radii):
  """Compares `signs` with those of rational numbers."""
  excess = [
    rational(*pair) - Fraction(radius) ** 2
    for *pair, radius in zip(x, y, radii.tolist(), strict=True)
  ]
  assert signs(x, y, radii) == [(e > 0) - (e < 0) for e in excess]


@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_points_next_to_the_sphere(dtype):
  """The radii are the floats of the true distances, and their neighbours."""
  rng = np.random.default_rng(0)
  x = rng.random((60, 3, 5)).astype(dtype)
  y = (x.astype(np.float64) + rng.normal(size=x.shape) / 8).astype(dtype)
  distance = exact.distances(x, y)
  for towards in (0, distance, np.inf):
    check_signs(x, y, np.nextafter(distance, towards))


@pytest.mark.parametrize('scale', [1e-170, 1e-300, 5e-324, 1e150])
def test_magnitudes_whose_squares_leave_the_doubles(scale):
  x, y = np.zeros([3, 2]), np.tile(np.array([3.0, 4.0]) * scale, (3, 1))
  check_signs(x, y, np.array([4.0, 5.0, 6.0]) * scale)


def test_points_without_a_distance_lie_outside_and_radii_may_be_zero():
  x = np.zeros([5, 2])
  y = np.array([[math.nan, 0], [math.inf, 0], [1, 0], [0, 0], [5e-324, 0]])
  radii = np.array([math.inf, math.inf, math.inf, 0, 0])
  assert signs(x, y, radii) == [1, 1, -1, 0, 1]


@pytest.mark.parametrize('closed', [False, True])
@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_pulled_points_are_inside_and_far(dtype, closed):
  rng = np.random.default_rng(2)
  x = (0.5 + rng.random((43, 4, 4, 1))).astype(dtype)
  target = x.astype(np.float64) + rng.normal(size=x.shape)
  radii = np.append(rng.random(40) + 0.05, [math.inf, 1e-30, 0.0])
  y = exact.pull_inside(x, target, radii, closed=closed, to_sphere=True)
  assert y.dtype == dtype
  assert exact.is_inside(x, y, radii, closed=closed)[:42].all()
  np.testing.assert_array_equal(y[41:], x[41:])  # No other point is inside.
  distances = exact.distances(x, y)
  # Sixteen coordinates round by half a unit each, and shrinking doubles.
  slack = 32 * float(ml_dtypes.finfo(dtype).eps)
  assert np.all(distances[:40] > radii[:40] - slack)
  assert 1000 < distances[40] <= exact.FARTHEST


def test_pulling_leaves_what_is_inside_or_pushes_it_out():
  x = np.zeros([1, 4])
  y = np.array([[0.0, 0.1, 0.0, 0.0]])
  radius = np.array([0.5])
  kept = exact.pull_inside(x, y, radius, closed=True)
  np.testing.assert_array_equal(kept, y)
  pushed = exact.pull_inside(x, y, radius, closed=True, to_sphere=True)
  np.testing.assert_array_equal(pushed, [[0, 0.5, 0, 0]])
  opened = exact.pull_inside(x, y, radius, closed=False, to_sphere=True)
  assert 0.5 - 1e-15 < opened[0, 1] < 0.5


def test_blocks_change_nothing(monkeypatch):
  x, y = np.random.default_rng(3).random((2, 50, 3, 4))
  radii = exact.distances(x, y)
  whole = signs(x, y, radii)
  monkeypatch.setattr(exact, '_BLOCK', 100)
  assert len(list(exact.blocks(x))) == 7
  np.testing.assert_array_equal(exact.distances(x, y), radii)
  assert signs(x, y, radii) == whole
