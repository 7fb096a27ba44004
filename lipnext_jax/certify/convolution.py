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
import functools

import numpy as np

from lipnext_jax.certify import norms

# Number of squarings of the first bound, which sorts the frequencies.
_CHEAP = 4
# Largest side of a convolution's matrix that is bounded itself, in seconds.
_DENSE = 1024


def kernel_bound(
  kernel: np.ndarray, grid: tuple[int, int], padding: str
) -> float:
  """Bounds ‖x ↦ convolve(x, kernel)‖₂ on [h, w, ch] arrays from above.

  Args:
    kernel: [k, k, ch, c], finite, of any float dtype that float64 holds.
    grid: (h, w).
    padding: 'circular' or 'zero'.

  Raises:
    ValueError: `kernel` is not finite or not held by float64, or `padding` is
      unknown.
  """
  kernel = norms.to_float64(kernel)
  if not np.all(np.isfinite(kernel)):
    raise ValueError('kernel_bound: the kernel is not finite.')
  if padding not in ('circular', 'zero'):
    raise ValueError(f"{padding=} must be 'circular' or 'zero'.")
  k = kernel.shape[0]
  if padding == 'zero' and grid[0] * grid[1] * max(kernel.shape[2:]) <= _DENSE:
    return norms.norm_bound(matrix(kernel, grid))
  h, w = (n + k - 1 if padding == 'zero' else n for n in grid)
  rows, columns = _phases(h, h, k), _phases(w, w // 2 + 1, k)
  symbols = np.einsum('ha,wb,abio->hwio', rows, columns, kernel)
  symbols = symbols.reshape(-1, *kernel.shape[-2:])
  # Σ_t |W_t|, for the rounding of the sums above.
  total = np.sum(np.abs(kernel), axis=(0, 1))
  unit = norms.UNIT_ROUNDOFF
  rounding = 2 * (k * k + 48) * unit * float(np.linalg.norm(total))
  return _largest(symbols) * (1 + 4 * unit) + rounding


def matrix(kernel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Returns the matrix [h·w·c, h·w·ch] of a convolution with zero padding.

  It is exact, for a kernel [k, k, ch, c] on the grid (h, w).
  """
  k = kernel.shape[0]
  # Input i reaches output o through tap i − o + (k − 1)//2, if there is one.
  rows, columns = (
    np.arange(n)[None, :] - np.arange(n)[:, None] + (k - 1) // 2 for n in grid
  )
  padded = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))  # Tap k is zero.
  rows, columns = (np.where((t >= 0) & (t < k), t, k) for t in (rows, columns))
  taps = padded[rows[:, None, :, None], columns[None, :, None, :]]
  h, w = grid
  return taps.transpose(0, 1, 5, 2, 3, 4).reshape(
    h * w * kernel.shape[3], h * w * kernel.shape[2]
  )


def _phases(n: int, count: int, taps: int) -> np.ndarray:
  """Returns e^{−2πi f t/n} for the first `count` frequencies f."""
  turns = np.outer(np.arange(count), np.arange(taps)) % n
  return np.exp(-2j * np.pi * turns / n)


def _largest(matrices: np.ndarray) -> float:
  """Bounds max ‖W‖₂ from above over complex matrices [f, m, n].

  A matrix whose cheap bound is below the maximum so far needs no better one.
  """
  real = [norms.realified(w) for w in matrices]
  cheap = np.array([norms.norm_bound(w, _CHEAP) for w in real])
  best = 0.0
  for i in np.argsort(-cheap):
    if cheap[i] <= best:
      break
    best = max(best, norms.norm_bound(real[i]))
  return best


def spectrum_bound(spectrum: np.ndarray, grid: tuple[int, int]) -> float:
  """Bounds max(1, ‖conv‖₂) from above for a half spectrum.

  Args:
    spectrum: [h, w//2 + 1, 2, c, c], finite, of any float dtype.
    grid: (h, w).

  Raises:
    ValueError: `spectrum` does not fit the grid, is not finite or not held by
      float64.
  """
  if spectrum.shape[:3] != (grid[0], grid[1] // 2 + 1, 2):
    raise ValueError(
      f'a spectrum of shape {spectrum.shape} does not fit {grid=}.'
    )
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
  'conv_circular': (4, functools.partial(kernel_bound, padding='circular')),
  'conv_zero': (4, functools.partial(kernel_bound, padding='zero')),
  'spectrum': (5, spectrum_bound),
}
