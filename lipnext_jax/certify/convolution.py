"""Proves upper bounds on the norms of convolutions, in float64.

With circular padding, a convolution with taps W_t acts on each frequency ω
alone:

    Ŵ(ω) = Σ_t W_t e^{−i ω·t},    ‖conv‖₂ = max_ω ‖Ŵ(ω)‖₂.

For a real kernel, ‖Ŵ(−ω)‖ = ‖Ŵ(ω)‖: half of the frequencies suffice.

With zero padding, a k×k kernel on an h×w grid is a submatrix of the circular
convolution on (h + k − 1)×(w + k − 1), whose norm bounds it. On small grids,
where this is far off (30 % on 4×4), the convolution's matrix itself is bounded.

A stored half spectrum [h, w//2 + 1, 2, c, c] (real and imaginary parts) bounds
`irfft2(Ŵ · rfft2(x))` for any numbers: with inner frequencies counted twice,
rfft2 of a real array preserves norms (Parseval), and dropping the imaginary
parts of outer frequencies, as irfft2 does, only shrinks.

Rounding: each entry of Ŵ is a sum of k² products with two phases, each off by
less than 20u for u = 2⁻⁵³ (angles up to 2π, rounded three times). The sum is
off by less than (k² + 48)·u·Σ_t |W_t|. The code takes twice this, to cover the
rounding of the term itself.
"""

from collections.abc import Callable

import numpy as np

from lipnext_jax.certify import norms

# Number of squarings of the first bound, which sorts the frequencies.
_CHEAP = 4
# Largest side of a convolution's matrix that is bounded itself, in seconds.
_DENSE = 1024


def circular_bound(kernel: np.ndarray, grid: tuple[int, int]) -> float:
  """Bounds the norm of a convolution with circular padding from above.

  Args:
    kernel: [k, k, ch, c], of any float dtype that float64 holds.
    grid: (h, w).

  Raises:
    ValueError: `kernel` is not finite or not held by float64.
  """
  kernel = norms.to_finite64(kernel)
  k, (h, w) = len(kernel), grid
  rows, columns = _phases(h, h, k), _phases(w, w // 2 + 1, k)
  symbols = np.einsum('ha,wb,abio->hwio', rows, columns, kernel)
  # Σ_t |W_t|, for the rounding of the sums above.
  total = np.sum(np.abs(kernel), axis=(0, 1))
  unit = norms.UNIT_ROUNDOFF
  rounding = 2 * (k * k + 48) * unit * float(np.linalg.norm(total))

  symbols = symbols.reshape(-1, *kernel.shape[2:])
  real = [norms.realified(symbol) for symbol in symbols]
  cheap = np.array([norms.norm_bound(w, _CHEAP) for w in real])
  largest = 0.0
  for i in np.argsort(-cheap):
    if cheap[i] <= largest:  # The others are no larger.
      break
    largest = max(largest, norms.norm_bound(real[i]))
  return largest * (1 + 4 * unit) + rounding


def zero_bound(kernel: np.ndarray, grid: tuple[int, int]) -> float:
  """Bounds the norm of a convolution with zero padding; see `circular_bound`.

  >>> kernel = 3 * np.eye(2).reshape(1, 1, 2, 2)
  >>> 3 <= zero_bound(kernel, (4, 4)) < 3.001
  True
  """
  kernel = norms.to_finite64(kernel)
  h, w = grid
  if h * w * max(kernel.shape[2:]) <= _DENSE:
    return norms.norm_bound(matrix(kernel, grid))
  k = len(kernel)
  return circular_bound(kernel, (h + k - 1, w + k - 1))


def matrix(kernel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Returns the exact matrix [h·w·c, h·w·ch] of a zero-padded convolution."""
  k, (h, w) = len(kernel), grid
  total = np.zeros((h * w * kernel.shape[3], h * w * kernel.shape[2]))
  for row, column in np.ndindex(k, k):
    # Input i reaches output o through tap i − o + (k − 1)//2, if there is one.
    rows, columns = (
      np.eye(n, k=tap - (k - 1) // 2) for n, tap in ((h, row), (w, column))
    )
    total += np.kron(np.kron(rows, columns), kernel[row, column].T)
  return total


def _phases(n: int, count: int, taps: int) -> np.ndarray:
  """Returns e^{−2πi f t/n} for the first `count` frequencies f."""
  turns = np.outer(np.arange(count), np.arange(taps)) % n
  return np.exp(-2j * np.pi * turns / n)


def spectrum_bound(spectrum: np.ndarray, grid: tuple[int, int]) -> float:
  """Bounds max(1, ‖conv‖₂) from above for a half spectrum.

  Args:
    spectrum: [h, w//2 + 1, 2, c, c], of any float dtype that float64 holds.
    grid: (h, w); the bound is the same on every grid.

  Raises:
    ValueError: `spectrum` is not finite or not held by float64.
  """
  wide = norms.to_float64(spectrum)
  matrices = wide[..., 0, :, :] + 1j * wide[..., 1, :, :]
  return max(
    norms.spectral_norm_bound(norms.realified(w))
    for w in matrices.reshape(-1, *matrices.shape[-2:])
  )


# By the name of a leaf: number of dimensions of one operator of its stack, and
# function from the operator and the grid to its bound.
BOUNDS: dict[
  str, tuple[int, Callable[[np.ndarray, tuple[int, int]], float]]
] = {
  'conv_circular': (4, circular_bound),
  'conv_zero': (4, zero_bound),
  'spectrum': (5, spectrum_bound),
}
