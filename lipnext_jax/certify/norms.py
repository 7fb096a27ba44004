"""Proves upper bounds on the spectral norms of matrices, in float64.

`spectral_norm_bound` is tight for matrices near the orthogonal group (proof in
docs/certificates.md). `norm_bound` is for all others (B. Delattre et al.,
"Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
Iteration", ICML 2023).

A product fl(AB) is off by γ_n ‖A‖_F ‖B‖_F at most, in any order of summation
and with fused multiply-adds, but not with Strassen's algorithm, which NumPy's
BLAS does not use. The code adds twice this, to cover underflow and the rounding
of the term itself.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np


class Arithmetic(NamedTuple):
  """A floating-point format."""

  unit: float  # Unit roundoff u: half the gap between 1 and the next number.
  tiny: float  # Smallest normal number; smaller ones may become zero.

  def gamma(self, n: int) -> float:
    """Computes γ_n = n·u / (1 − n·u), which bounds n roundings (Higham).

    Raises:
      ValueError: n·u >= 1/2.
    """
    if n * self.unit >= 0.5:
      raise ValueError(f'{n} roundings of {self.unit:.1e} have no bound.')
    return n * self.unit / (1 - n * self.unit)


FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126)
UNIT_ROUNDOFF = FLOAT64.unit
# Above this ‖D‖₂, the largest eigenvalue of D is bounded, too.
_NEAR = 1e-4
_SQUARINGS = 3  # m = 2³: ‖D^8‖_F^{1/8} <= n^{1/16} ‖D‖₂.
# m = 2¹²: ‖(WᵀW)^m‖_F^{1/2m} <= n^{1/16384} ‖W‖₂, 1.0006 ‖W‖₂ for n = 10⁴.
_NORM_SQUARINGS = 13  # That of WᵀW, and twelve of it.


def to_float64(array: Any) -> np.ndarray:
  """Returns the same real numbers in float64, on the host.

  Raises:
    ValueError: an entry is complex, an object or not exactly a float64 number.
  """
  array = np.asarray(array)
  if array.dtype.kind in 'fiubV':  # V: bfloat16 and narrower floats.
    wide = array.astype(np.float64)
    if np.array_equal(wide.astype(array.dtype), array, equal_nan=True):
      return wide
  raise ValueError(f'{array.dtype} numbers that float64 does not hold.')


def to_finite64(array: Any) -> np.ndarray:
  """Returns `to_float64` of an array; raises ValueError if it is not finite."""
  wide = to_float64(array)
  if not np.all(np.isfinite(wide)):
    raise ValueError(f'an array of shape {wide.shape} is not finite.')
  return wide


def frobenius_norm_bound(a: np.ndarray) -> float:
  """Bounds ‖a‖_F from above; the sum of squares rounds by γ_{size + 2}."""
  a = np.asarray(a, np.float64)
  return float(np.linalg.norm(a)) * (1 + 2 * FLOAT64.gamma(a.size + 2))


def _symmetric(a: np.ndarray) -> np.ndarray:
  """Mirrors the lower triangle, which keeps elementwise error bounds."""
  return np.tril(a) + np.tril(a, -1).T


def norm_bound(w: np.ndarray, squarings: int = _NORM_SQUARINGS) -> float:
  """Bounds ‖w‖₂ from above for any matrix; the bound may be below 1.

  ‖W‖₂² = ‖WᵀW‖₂ <= ‖fl(WᵀW)‖₂ + γ_m ‖W‖_F², where the symmetric fl(WᵀW) is
  bounded in the same way, with one squaring less.

  Args:
    w: [m, n] float64, finite.
    squarings: number s of squarings, WᵀW included. The bound exceeds ‖w‖₂ by a
      factor of n^(2^(−s − 1)) at most.
  """
  if not squarings:
    return frobenius_norm_bound(w)
  if w.shape[0] < w.shape[1]:
    w = w.T
  largest = float(np.max(np.abs(w), initial=0.0))
  if not 0 < largest < math.inf:
    return largest
  # A power of two scales the largest entry into [1/2, 1): WᵀW cannot overflow,
  # and the factor 2 of `rounding` covers what underflows, mn·2⁻¹⁰⁷³.
  exponent = math.frexp(largest)[1]
  w = np.ldexp(w, -exponent)
  inner = norm_bound(_symmetric(w.T @ w), squarings - 1)
  frobenius = frobenius_norm_bound(w)
  rounding = 2 * FLOAT64.gamma(w.shape[0]) * frobenius * frobenius
  # 1 + 8u covers the few scalar operations, the root included.
  scaled = math.sqrt(inner + rounding) * (1 + 8 * UNIT_ROUNDOFF)
  # Scaling back may round to a subnormal number.
  return float(np.nextafter(np.ldexp(scaled, exponent), math.inf))


def spectral_norm_bound(w: np.ndarray) -> float:
  """Bounds max(1, ‖w‖₂) from above; tight for nearly orthogonal matrices.

  Args:
    w: [m, n], finite, of any float dtype that float64 holds.

  Raises:
    ValueError: `w` is not a matrix, not finite or not held by float64.

  >>> 1.001 <= spectral_norm_bound(1.001 * np.eye(3)) < 1.0011
  True
  """
  w = to_finite64(w)
  if w.ndim != 2:
    raise ValueError(f'spectral_norm_bound needs a matrix [m, n]: {w.shape=}.')
  if w.shape[0] < w.shape[1]:
    w = w.T
  if np.max(np.abs(w), initial=0.0) > 2.0**400:  # WᵀW may overflow.
    return norm_bound(w)
  m, n = w.shape
  frobenius = frobenius_norm_bound(w)
  d = _symmetric(w.T @ w) - np.eye(n)
  # The product rounds by γ_m ‖W‖_F². Subtracting I rounds the diagonal, in norm
  # by u(1 + ‖W‖_F²) at most.
  rounding = 2 * FLOAT64.gamma(m + 2) * (frobenius * frobenius + math.sqrt(n))
  defect = norm_bound(d, _SQUARINGS)
  if defect > _NEAR:
    # D + νI >= 0 for ν >= ‖D‖₂, so that λ_max(D) = ‖D + νI‖₂ − ν. A matrix that
    # shrinks has a small λ_max(D) beside its ‖D‖₂.
    top = norm_bound(d + defect * np.eye(n), _NORM_SQUARINGS - 1)
    # The shift rounds diagonal entries below 2ν.
    largest = max(0.0, top - defect) + 8 * UNIT_ROUNDOFF * (defect + top)
    defect = min(defect, largest)
  return math.sqrt(1 + defect + rounding) * (1 + 8 * UNIT_ROUNDOFF)


def realified(w: np.ndarray) -> np.ndarray:
  """Returns [[Re w, −Im w], [Im w, Re w]], of the same spectral norm."""
  return np.block([[w.real, -w.imag], [w.imag, w.real]])
