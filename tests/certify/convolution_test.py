"""Tests that bounds on convolutions are above the norm, and close to it.

The oracle is the dense matrix of `models.convolutions`, made by
applying it to every unit image in float64, and LAPACK's largest singular value.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import convolution
from lipnext_jax.models import convolutions

# LAPACK is right to a small multiple of n·u·‖W‖, 1e-13 for n <= 200; the
# columns that the map under test computed round a little more.
ORACLE_ERROR = 1e-12


def norm_of(apply, weights, grid, channels):
  """Returns the norm of x ↦ apply(x, weights) on [h, w, channels] arrays."""
  n = grid[0] * grid[1] * channels
  with jax.enable_x64(True):
    units = jnp.eye(n).reshape(n, *grid, channels)
    columns = apply(units, jnp.asarray(weights, units.dtype))
  return np.linalg.norm(np.asarray(columns).reshape(n, -1), 2)


def random_kernel(k=3, ch=3, c=4, seed=0):
  return np.random.default_rng(seed).normal(size=(k, k, ch, c))


# Its worst input changes sign from pixel to pixel. On an odd circular grid no
# image does so, with zero padding nearly.
ALTERNATING = np.zeros((3, 3, 1, 1))
ALTERNATING[1, :, 0, 0] = [-1, 2, -1]
# Square and not, odd and even sides, a kernel larger than its grid.
CASES = [
  (random_kernel(), (4, 4)),
  (random_kernel(ch=1, c=1), (5, 7)),
  (random_kernel(ch=4, c=2, seed=1), (3, 6)),
  (random_kernel(k=5, ch=2, c=2, seed=2), (2, 3)),
  (random_kernel(k=2, ch=2, c=3, seed=3), (4, 5)),
  (np.zeros((3, 3, 2, 2)), (3, 3)),
  (ALTERNATING, (1, 3)),
]


def check_bound(fn, kernel, grid, padding, slack):
  apply = functools.partial(convolutions.convolve, padding=padding)
  truth = norm_of(apply, kernel, grid, kernel.shape[2])
  b = fn(kernel, grid)
  assert b >= truth * (1 - ORACLE_ERROR), 'below the norm'
  assert b <= truth * slack + 1e-300, 'far above the norm'


@pytest.mark.parametrize('case', range(len(CASES)))
def test_the_bound_is_above_the_norm_and_close(case, monkeypatch):
  # 10^(1/16384), and rounding.
  check_bound(convolution.circular_bound, *CASES[case], 'circular', 1.001)
  check_bound(convolution.zero_bound, *CASES[case], 'zero', 1.001)
  # On larger grids zero padding is bounded by frequencies. A 5×5 kernel on 2×3
  # pixels has lost most of itself.
  monkeypatch.setattr(convolution, '_DENSE', 0)
  check_bound(convolution.zero_bound, *CASES[case], 'zero', 3)


def power_iteration(kernel, grid):
  """Planted: power iteration, as in training, from below."""
  kernel = jnp.asarray(kernel, jnp.float32)
  return float(convolutions.power_iteration(kernel, grid, 'circular', 3))


def largest_tap(kernel, grid):
  """Planted: the norms of single taps."""
  return max(np.linalg.norm(tap, 2) for row in kernel for tap in row)


@pytest.mark.parametrize(
  ('fault', 'padding', 'case'),
  [
    # Planted: zero padding bounded on the grid itself, as if circular.
    (convolution.circular_bound, 'zero', (ALTERNATING, (1, 3))),
    (power_iteration, 'circular', CASES[0]),
    (largest_tap, 'circular', CASES[0]),
  ],
)
def test_the_check_rejects(fault, padding, case):
  with pytest.raises(AssertionError, match='below the norm'):
    check_bound(fault, *case, padding, 2)


@pytest.mark.parametrize('grid', [(3, 4), (4, 5), (2, 1)])
def test_a_spectrum_is_bounded_whatever_its_numbers_are(grid):
  rng = np.random.default_rng(0)
  spectrum = 5 * rng.normal(size=(grid[0], grid[1] // 2 + 1, 2, 3, 3))
  truth = norm_of(convolutions.apply_spectrum, spectrum, grid, 3)
  b = convolution.spectrum_bound(spectrum, grid)
  # Outer frequencies lose their imaginary parts: not attained.
  assert truth * (1 - ORACLE_ERROR) <= b <= 3 * truth
  one_frequency = np.max(spectrum[0, 0, 0])  # Planted: one entry of many.
  assert one_frequency < truth
