"""A proved upper bound on the Lipschitz constant of what was stored.

The stored matrices are float32 numbers near the orthogonal group, not on it.
For each of them, in float64 and with the rounding of this very computation
accounted for (no randomness, no iteration that approaches from below):

    ‖W‖₂² = ‖WᵀW‖₂ <= 1 + ‖D‖₂,    D = WᵀW − I,
    ‖D‖₂ = ‖D^m‖₂^{1/m} <= ‖D^m‖_F^{1/m},    m = 8, D symmetric.

Rounding. With u = 2⁻⁵³ and γ_n = n·u/(1 − n·u), any order of summation gives
|fl(AB) − AB| <= γ_n |A||B| elementwise (N. Higham, "Accuracy and Stability of
Numerical Algorithms", §3.5), so ‖fl(AB) − AB‖₂ <= γ_n ‖A‖_F ‖B‖_F. Fused
multiply-adds only help; Strassen-like products would not obey it, and NumPy's
BLAS has none. The code doubles every such term: the second half pays for
underflow and for the rounding of the term itself.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

from lipnext_jax.models import lipnext
from lipnext_jax.optim import recipe

_UNIT_ROUNDOFF = 2.0**-53
_SQUARINGS = 3  # m = 2³: ‖D^8‖_F^{1/8} exceeds ‖D‖₂ by n^{1/16} at most.


def _gamma(n: int) -> float:
  return n * _UNIT_ROUNDOFF / (1 - n * _UNIT_ROUNDOFF)


def _frobenius_upper(a: np.ndarray) -> float:
  """An upper bound on ‖a‖_F: the sum of squares rounds by γ_{size + 2}."""
  return float(np.linalg.norm(a)) * (1 + 2 * _gamma(a.size + 2))


def _symmetric(a: np.ndarray) -> np.ndarray:
  """`a` with its lower triangle mirrored: exact, and keeps entrywise bounds."""
  return np.tril(a) + np.tril(a, -1).T


def _symmetric_norm_upper(s: np.ndarray, squarings: int) -> float:
  """An upper bound on ‖s‖₂ of a symmetric float64 matrix.

  ‖S‖₂² = ‖S²‖₂ <= ‖fl(S²)‖₂ + γ_n ‖S‖_F², then the same for fl(S²).
  """
  if not squarings:
    return _frobenius_upper(s)
  largest = float(np.max(np.abs(s), initial=0.0))
  if not 0 < largest < math.inf:
    return largest
  # A power of two brings the largest entry into [1/2, 1): S² cannot overflow,
  # and what underflows (n²·2⁻¹⁰⁷³) vanishes in the factor 2 of `rounding`.
  exponent = math.frexp(largest)[1]
  s = np.ldexp(s, -exponent)
  inner = _symmetric_norm_upper(_symmetric(s @ s), squarings - 1)
  frobenius = _frobenius_upper(s)  # Below n: no overflow.
  rounding = 2 * _gamma(s.shape[0]) * frobenius * frobenius
  # 1 + 8u covers the few scalar operations, the root included.
  scaled = math.sqrt(inner + rounding) * (1 + 8 * _UNIT_ROUNDOFF)
  return float(np.ldexp(scaled, exponent))


def spectral_norm_bound(w: np.ndarray) -> float:
  """A float >= ‖w‖₂ and >= 1, tight for a matrix that is nearly orthogonal.

  Args:
    w: [m, n] of any float dtype, finite.

  Raises:
    ValueError: not a matrix, or not finite.

  >>> spectral_norm_bound(np.eye(3)) < 1 + 1e-14
  True
  >>> spectral_norm_bound(1.001 * np.eye(3)) >= 1.001
  True
  """
  w = np.asarray(w, np.float64)
  if w.ndim != 2:
    raise ValueError(f'spectral_norm_bound needs a matrix, got {w.shape=}.')
  if not np.all(np.isfinite(w)):
    raise ValueError('spectral_norm_bound: the matrix is not finite.')
  if w.shape[0] < w.shape[1]:
    w = w.T
  m, n = w.shape
  with np.errstate(over='ignore', invalid='ignore'):
    frobenius = _frobenius_upper(w)
    d = _symmetric(w.T @ w) - np.eye(n)
    if not np.all(np.isfinite(d)):  # Entries from 1e150 on: WᵀW overflows.
      return max(1.0, frobenius)
    # The product rounds by γ_m ‖W‖_F²; subtracting I rounds the diagonal once
    # more, by at most u(1 + |entry|) each, which γ_m ‖W‖_F² + 2u·√n covers.
    rounding = 2 * _gamma(m + 2) * (frobenius * frobenius + math.sqrt(n))
    defect = _symmetric_norm_upper(d, _SQUARINGS) + rounding
  return math.sqrt(1 + defect) * (1 + 8 * _UNIT_ROUNDOFF)


def float32_above(value: float) -> np.float32:
  """The next float32 above `value`: Λ may only grow on its way to a device.

  >>> float(float32_above(1 + 1e-12)) > 1 + 1e-12
  True
  """
  return np.nextafter(np.float32(value), np.float32(np.inf))


def lipschitz_bounds(
  params: Any,
  label_fn: Callable[[Any], Any] = recipe.orthogonal_labels,
  multiplicity_fn: Callable[[str], int] = lipnext.lipschitz_multiplicity,
) -> dict[str, list[float]]:
  """Per orthogonal parameter and layer: its factor in `lipschitz_bound`.

  >>> bounds = lipschitz_bounds({'M': np.eye(2)[None], 'bias': np.zeros(2)})
  >>> {name: len(layers) for name, layers in bounds.items()}
  {'M': 1}
  """
  labels = jax.tree.leaves(label_fn(params))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  bounds: dict[str, list[float]] = {}
  for (path, leaf), label in zip(leaves, labels, strict=True):
    if label != 'orthogonal':
      continue
    name = recipe.path_name(path)
    power = multiplicity_fn(name)
    stack = np.asarray(leaf)
    stack = stack.reshape(-1, *stack.shape[-2:])
    bounds[name] = [
      spectral_norm_bound(w) ** power * (1 + 4 * power * _UNIT_ROUNDOFF)
      for w in stack
    ]
  return bounds


def lipschitz_bound(
  params: Any,
  label_fn: Callable[[Any], Any] = recipe.orthogonal_labels,
  multiplicity_fn: Callable[[str], int] = lipnext.lipschitz_multiplicity,
) -> float:
  """Λ: a proved upper bound on the backbone's ℓ2 Lipschitz constant.

  The product of the spectral-norm bounds of all stored orthogonal matrices,
  each as often as a forward pass applies it (R twice a block: M Rᵀ S R).
  Everything else in the backbone (shift, β-Abs, pooling, biases) is
  1-Lipschitz as it stands. Proved for exact arithmetic on the stored numbers.

  Args:
    params: the model's parameters (or `{'params': …}`), fetched to the host
      leaf by leaf.
    label_fn: parameters → tree of 'orthogonal' / 'euclidean'.
    multiplicity_fn: 'a/b/leaf' → times the matrix is applied.

  Returns:
    A Python float >= the true constant, and >= 1.

  Raises:
    ValueError: no orthogonal parameter, an unlabelled one, or one that is not
      finite.

  >>> params = {'blocks': {'R': np.eye(4)[None], 'M': 1.001 * np.eye(4)[None]}}
  >>> 1.001 <= lipschitz_bound(params) < 1.0011
  True
  """
  return bound_product(lipschitz_bounds(params, label_fn, multiplicity_fn))


def bound_product(bounds: dict[str, list[float]]) -> float:
  """`lipschitz_bound`, of the factors that `lipschitz_bounds` gave.

  Raises:
    ValueError: there is none.

  >>> 6.0 <= bound_product({'R': [1.0, 2.0], 'M': [3.0]}) < 6.0 + 1e-12
  True
  """
  if not bounds:
    raise ValueError('lipschitz_bound found no orthogonal parameter to bound.')
  factors = [factor for layers in bounds.values() for factor in layers]
  # Each multiplication rounds by u at most.
  return math.prod(factors) * (1 + 2 * len(factors) * _UNIT_ROUNDOFF)
