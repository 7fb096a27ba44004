"""Proves upper bounds on ‖W‖₂ of stored matrices, rounding included.

For a matrix near the orthogonal group, in float64 and with the rounding of this
very computation accounted for:

    ‖W‖₂² = ‖WᵀW‖₂ <= 1 + ‖D‖₂,    D = WᵀW − I,
    ‖D‖₂ = ‖D^m‖₂^{1/m} <= ‖D^m‖_F^{1/m},    m = 8, D symmetric.

For any other matrix, the same of WᵀW itself with m = 4096 (`norm_bound`; "Gram
iteration": B. Delattre et al., "Efficient Bound of Lipschitz Constant for
Convolutional Layers by Gram Iteration", ICML 2023).

Rounding. With u = 2⁻⁵³ and γ_n = n·u/(1 − n·u), any order of summation gives
|fl(AB) − AB| <= γ_n |A||B| elementwise (N. Higham, "Accuracy and Stability of
Numerical Algorithms", §3.5), so ‖fl(AB) − AB‖₂ <= γ_n ‖A‖_F ‖B‖_F. Fused
multiply-adds only help; Strassen-like products would not obey it, and NumPy's
BLAS has none. The code doubles every such term: the second half pays for
underflow and for the rounding of the term itself.
"""

import math
from typing import Any

import numpy as np

from lipnext_jax.certify import rounding as rounding_lib

UNIT_ROUNDOFF = rounding_lib.FLOAT64.unit
_gamma = rounding_lib.FLOAT64.gamma
# Defects ‖WᵀW − I‖₂ above this one are bounded one-sidedly.
_NEAR = 1e-4
_SQUARINGS = 3  # m = 2³: ‖D^8‖_F^{1/8} exceeds ‖D‖₂ by n^{1/16} at most.
# m = 2¹²: ‖(WᵀW)^m‖_F^{1/2m} exceeds ‖W‖₂ by a factor of n^{1/16384} at most,
# 1.0006 for n = 10⁴.
_NORM_SQUARINGS = 12


def to_float64(array: Any) -> np.ndarray:
  """Returns the same numbers in float64, on the host.

  Raises:
    ValueError: float64 does not hold them: complex or wider ones, objects.

  >>> to_float64(np.float32([1.5])).tolist()
  [1.5]
  """
  array = np.asarray(array)
  if array.dtype.kind in 'fiubV':  # V: bfloat16 and narrower floats.
    wide = array.astype(np.float64)
    if np.array_equal(wide.astype(array.dtype), array, equal_nan=True):
      return wide
  raise ValueError(f'{array.dtype} numbers that float64 does not hold.')


def frobenius_norm_bound(a: np.ndarray) -> float:
  """Bounds ‖a‖_F from above: its sum of squares rounds by γ_{size + 2}.

  >>> frobenius_norm_bound(np.array([[3.0], [4.0]])) >= 5
  True
  """
  a = np.asarray(a, np.float64)
  return float(np.linalg.norm(a)) * (1 + 2 * _gamma(a.size + 2))


def _symmetric(a: np.ndarray) -> np.ndarray:
  """Mirrors the lower triangle: exact, and entrywise bounds stay."""
  return np.tril(a) + np.tril(a, -1).T


def _symmetric_norm_upper(s: np.ndarray, squarings: int) -> float:
  """Bounds ‖s‖₂ of a symmetric float64 matrix from above.

  ‖S‖₂² = ‖S²‖₂ <= ‖fl(S²)‖₂ + γ_n ‖S‖_F², then the same for fl(S²).
  """
  if not squarings:
    return frobenius_norm_bound(s)
  largest = float(np.max(np.abs(s), initial=0.0))
  if not 0 < largest < math.inf:
    return largest
  # A power of two brings the largest entry into [1/2, 1): S² cannot overflow,
  # and what underflows (n²·2⁻¹⁰⁷³) vanishes in the factor 2 of `rounding`.
  exponent = math.frexp(largest)[1]
  s = np.ldexp(s, -exponent)
  inner = _symmetric_norm_upper(_symmetric(s @ s), squarings - 1)
  frobenius = frobenius_norm_bound(s)  # Below n: no overflow.
  rounding = 2 * _gamma(s.shape[0]) * frobenius * frobenius
  # 1 + 8u covers the few scalar operations, the root included.
  scaled = math.sqrt(inner + rounding) * (1 + 8 * UNIT_ROUNDOFF)
  return float(np.ldexp(scaled, exponent))


def spectral_norm_bound(w: np.ndarray) -> float:
  """Bounds max(1, ‖w‖₂) from above; tight for nearly orthogonal matrices.

  A shrinking matrix costs nothing, or less than 1e-4 where WᵀW is off the
  identity by less than that.

  Args:
    w: [m, n] of any float dtype up to float64, finite.

  Raises:
    ValueError: not a matrix, not finite, or not held by float64.

  >>> spectral_norm_bound(np.eye(3)) < 1 + 1e-14
  True
  >>> 1.001 <= spectral_norm_bound(1.001 * np.eye(3)) < 1.0011
  True
  >>> spectral_norm_bound(0.5 * np.eye(3)) < 1 + 1e-3
  True
  """
  w = to_float64(w)
  if w.ndim != 2:
    raise ValueError(f'spectral_norm_bound needs a matrix, got {w.shape=}.')
  if not np.all(np.isfinite(w)):
    raise ValueError('spectral_norm_bound: the matrix is not finite.')
  if w.shape[0] < w.shape[1]:
    w = w.T
  m, n = w.shape
  with np.errstate(over='ignore', invalid='ignore'):
    frobenius = frobenius_norm_bound(w)
    d = _symmetric(w.T @ w) - np.eye(n)
    if not np.all(np.isfinite(d)):  # Entries from 1e150 on: WᵀW overflows.
      return max(1.0, frobenius)
    # The product rounds by γ_m ‖W‖_F²; subtracting I rounds the diagonal once
    # more, by at most u(1 + |entry|) each, which γ_m ‖W‖_F² + 2u·√n covers.
    rounding = 2 * _gamma(m + 2) * (frobenius * frobenius + math.sqrt(n))
    defect = _symmetric_norm_upper(d, _SQUARINGS)
    if _NEAR < defect < math.inf:
      defect = min(defect, _largest_eigenvalue_upper(d, defect))
  return math.sqrt(1 + defect + rounding) * (1 + 8 * UNIT_ROUNDOFF)


def _largest_eigenvalue_upper(d: np.ndarray, norm: float) -> float:
  """Bounds max(0, λ_max(d)) of a symmetric matrix with ‖d‖₂ <= norm.

  D + norm·I has no negative eigenvalue, so its norm is λ_max(D) + norm. Twelve
  squarings leave 0.1 % of that, where three leave 10 % and more.
  """
  shifted = d + norm * np.eye(len(d))  # Rounds the diagonal, to below 2·norm.
  top = _symmetric_norm_upper(shifted, _NORM_SQUARINGS)
  return max(0.0, top - norm) + 8 * UNIT_ROUNDOFF * (norm + top)


def norm_bound(w: np.ndarray, squarings: int = _NORM_SQUARINGS) -> float:
  """Bounds ‖w‖₂ of any matrix from above; the bound may be below 1.

  Args:
    w: [m, n] float64, finite.
    squarings: of WᵀW; the bound is too large by n^(2^(−squarings − 2)) at most.
  """
  if w.shape[0] < w.shape[1]:
    w = w.T
  largest = float(np.max(np.abs(w), initial=0.0))
  if not 0 < largest < math.inf:
    return largest
  # A power of two brings the entries below 1: nothing overflows, and what
  # underflows vanishes in the factor 2 of `rounding`.
  exponent = math.frexp(largest)[1]
  w = np.ldexp(w, -exponent)
  frobenius = frobenius_norm_bound(w)
  gram = _symmetric_norm_upper(_symmetric(w.T @ w), squarings)
  rounding = 2 * _gamma(w.shape[0]) * frobenius * frobenius
  scaled = math.sqrt(gram + rounding) * (1 + 8 * UNIT_ROUNDOFF)
  # Among subnormal numbers, scaling back rounds.
  return float(np.nextafter(np.ldexp(scaled, exponent), math.inf))


def realified(w: np.ndarray) -> np.ndarray:
  """Returns [[Re w, −Im w], [Im w, Re w]], of the same spectral norm."""
  return np.block([[w.real, -w.imag], [w.imag, w.real]])
