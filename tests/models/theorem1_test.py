"""The paper's Theorem 1, executed: norm-preserving kernels are single ±1.

docs/theorem1.md has the proof, and a counterexample on a smaller grid. Here all
kernels of a lattice are tried, in which that counterexample lies.
"""

import itertools

import numpy as np
import pytest


def preserves_norms(kernel, n):
  """Whether all coefficients K̂(ω) on an n×n grid have modulus 1."""
  spectrum = np.fft.fft2(kernel, s=(n, n))
  return np.allclose(np.abs(spectrum) ** 2, 1, rtol=0, atol=1e-9)


@pytest.mark.parametrize('shape', [(2, 2), (1, 3), (3, 1)])
def test_only_single_entries_preserve_norms_on_grids_that_are_large_enough(
  shape,
):
  side, found, small = max(shape), 0, 0
  for entries in itertools.product(np.arange(-3, 4) / 3, repeat=np.prod(shape)):
    kernel = np.reshape(entries, shape)
    sizes = sorted(abs(kernel).ravel())
    single = sizes[-1] == 1 and not any(sizes[:-1])
    assert preserves_norms(kernel, 2 * side - 1) == single, kernel
    found += single
    small += preserves_norms(kernel, side)
  assert found == 2 * np.prod(shape)  # ±1 at each place.
  assert (small > found) == (side == 3)  # (−1, 2, 2)/3 on three pixels.
