"""The paper's Theorem 1, executed: norm-preserving kernels are single ±1.

On an n×n circular grid with n >= 2k − 1, a depthwise k×k convolution preserves
norms if and only if its kernel has one nonzero entry, which is ±1. The proof is
in docs/theorem1.md; here both directions are searched, and a grid that is too
small refutes the theorem without its condition.
"""

import itertools

import numpy as np
import pytest


def defect(kernel, n):
  """max_ω | |K̂(ω)|² − 1 | on an n×n grid: 0 for isometries alone.

  The convolution is diagonal in the discrete Fourier basis, with entries K̂(ω).
  """
  spectrum = np.fft.fft2(kernel, s=(n, n))
  return np.max(np.abs(np.abs(spectrum) ** 2 - 1))


def is_isometry(kernel, n):
  return defect(kernel, n) < 1e-9  # Sums of at most 25 float64 products.


def is_single(kernel):
  """One entry ±1, the others 0."""
  expected = np.zeros(kernel.size)
  expected[0] = 1
  sizes = np.sort(np.abs(kernel).ravel())[::-1]
  return np.array_equal(sizes, expected)


# Thirds, because the counterexamples on grids that are too small have them.
ENTRIES = np.arange(-3, 4) / 3


@pytest.mark.parametrize('shape', [(2, 2), (1, 3), (3, 1)])
def test_only_if_no_other_kernel_of_a_lattice_preserves_norms(shape):
  n = 2 * max(shape) - 1
  found = 0
  for entries in itertools.product(ENTRIES, repeat=shape[0] * shape[1]):
    kernel = np.reshape(entries, shape)
    isometry = is_isometry(kernel, n)
    assert isometry == is_single(kernel), kernel
    found += isometry
  assert found == 2 * shape[0] * shape[1]  # ±1 at each place.


COUNTEREXAMPLE = np.array([[-1.0, 2.0, 2.0]]) / 3


def test_a_grid_that_is_too_small_has_other_isometries():
  """Autocorrelations wrap around: 3 pixels, 3 taps, none of them 0."""
  assert is_isometry(COUNTEREXAMPLE, 3)
  assert not is_single(COUNTEREXAMPLE)
  x = np.random.default_rng(0).normal(size=(3, 3))
  moved = sum(
    tap * np.roll(x, 1 - i, axis=1) for i, tap in enumerate(COUNTEREXAMPLE[0])
  )
  assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(x), rel=1e-12)
  assert np.linalg.norm(moved - x) > 0.1
  assert not is_isometry(COUNTEREXAMPLE, 5)  # Where the theorem speaks.
