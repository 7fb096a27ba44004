"""Tests that bounds on spectral norms are above the norm, and close.

"Exactly" is meant: floats are rationals, so that b >= ‖W‖₂ is the question
whether b² I − WᵀW is positive semi-definite, which Bareiss' elimination
decides in integers without a rounding.
"""

from fractions import Fraction
import math
import operator

import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import norms


def qr(m, n, seed=0):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(m, n), n)))[0]
  return q[:m]


def gaussian(*shape):
  return np.random.default_rng(5).normal(size=shape)


def exceeds_norm(b, w):
  """Returns whether b > ‖w‖₂, exactly: all leading minors of b²I − WᵀW > 0."""
  w = np.asarray(w, np.float64)
  w = w if w.shape[0] >= w.shape[1] else w.T
  columns = [[Fraction(float(v)) for v in column] for column in w.T]
  gram = [[sum(map(operator.mul, u, v)) for v in columns] for u in columns]
  a = [[-g for g in row] for row in gram]
  for i in range(len(a)):
    a[i][i] += Fraction(b) ** 2
  for i in range(len(a)):
    if a[i][i] <= 0:
      return False
    for row in a[i + 1 :]:
      ratio = row[i] / a[i][i]
      row[i:] = [x - ratio * y for x, y in zip(row[i:], a[i][i:], strict=True)]
  return True


def test_the_exact_decision_is_right_on_known_norms():
  w = np.diag([1.0, 3.0, 2.0])[:, [2, 0, 1]]
  assert exceeds_norm(Fraction(3) + Fraction(1, 10**40), w)
  assert not exceeds_norm(3.0, w)  # Strict.
  assert exceeds_norm(np.nextafter(5.0, 6), np.array([[3.0, 4.0]]))
  assert not exceeds_norm(np.nextafter(5.0, 4), np.array([[3.0, 4.0]]))


SMALL = {  # In the orthogonal group and far from it.
  'haar float32': qr(5, 5).astype(np.float32),
  'bfloat16': np.asarray(jnp.asarray(qr(4, 4, 7), jnp.bfloat16)),
  'scaled': 1.001 * qr(4, 4, 2),
  'rank one': np.outer([1.0, 2, 3], [0.1, 0.2, 0.3]),
  'zero': np.zeros((3, 3)),
  'gaussian': gaussian(4, 4),
  'tall': qr(6, 3, 4).astype(np.float32),
  'wide': qr(6, 3, 5).astype(np.float32).T,
  'one entry': np.array([[1 + 2**-52]]),
  'overflows squared': 1e160 * qr(3, 3, 8),
  'tiny': 1e-170 * qr(3, 3, 9),
  'subnormal': np.full((2, 2), 5e-324),
  'mixed scales': np.diag([1.0, 1e-300]) @ qr(2, 2, 10),
  'one large rest tiny': np.array([[1.0, 2**-27], [-(2**-27), 1.0]]),
}


def check_upper(fn, w):
  assert exceeds_norm(fn(w), w), 'below the norm'


@pytest.mark.parametrize('name', SMALL)
def test_bounds_exceed_the_norm_exactly(name):
  w = SMALL[name]
  b = norms.spectral_norm_bound(w)
  assert isinstance(b, float)
  assert b >= 1
  check_upper(lambda _: b, w)
  # Zero is its own bound: not above it, strictly.
  assert not np.any(w) or exceeds_norm(norms.norm_bound(np.float64(w)), w)


def in_order(w):
  """Planted: the same bound with the rounding of WᵀW left out.

  The sum runs in order, as any BLAS is free to do.
  """
  gram = sum(np.outer(row, row) for row in np.float64(w))
  d = np.linalg.matrix_power(gram - np.eye(len(gram)), 8)
  return math.sqrt(1 + np.linalg.norm(d) ** (1 / 8)) * (1 + 2**-50)


def power_iteration(w, steps=20):
  """Planted: power iteration, as in training, from below."""
  v = np.ones(w.shape[1])
  for _ in range(steps):
    v = w.T @ (w @ v)
    v /= np.linalg.norm(v)
  return float(np.linalg.norm(w @ v))


def normalised_defect(w):
  """Planted: 1 + ‖WᵀW − I‖_F/√n, a mean in the place of a maximum."""
  d = w.T @ w - np.eye(len(w))
  return 1 + float(np.linalg.norm(d)) / math.sqrt(len(w))


# 2⁻²⁷ squared is 2⁻⁵⁴, half of the half-ulp of 1: summed after the 1, each is
# lost, and the true norm, sqrt(1 + 4096·2⁻⁵⁴), is 1 + 2⁻⁴³.
ABSORBED = np.array([[1.0], *[[2.0**-27]] * 4096])
# One singular value is 1.001.
STRETCHED = qr(6, 6, 11) @ np.diag([1.001, 1, 1, 1, 1, 1]) @ qr(6, 6, 12)


@pytest.mark.parametrize(
  ('fault', 'w'),
  [
    (in_order, ABSORBED),
    (power_iteration, STRETCHED),
    (normalised_defect, STRETCHED),
  ],
)
def test_the_exact_check_rejects(fault, w):
  check_upper(norms.spectral_norm_bound, w)
  with pytest.raises(AssertionError, match='below the norm'):
    check_upper(fault, w)


def check_one_sided(fn, w):
  # Twice a defect (of 1 at most, overestimated by 4^(1/16)) by 4^(1/8192) − 1.
  smaller = fn(w) - 2 * 1.1 * 1.7e-4
  assert smaller <= 1 or not exceeds_norm(smaller, w), 'charged for shrinking'


def two_sided(w):
  """Planted: 1 + ‖WᵀW − I‖, which is large for short rows."""
  d = np.float64(w) @ np.float64(w).T - np.eye(len(w))
  return math.sqrt(1 + np.linalg.norm(d, 2))


def test_what_shrinks_costs_nothing():
  lengths = np.diag([1.01, 0.5, 0.9, 0.3]) @ qr(4, 4)
  for w in (0.5 * qr(4, 4, 3), np.eye(3)[:2], lengths):
    check_one_sided(norms.spectral_norm_bound, w)
    check_upper(norms.spectral_norm_bound, w)
  with pytest.raises(AssertionError, match='charged'):
    check_one_sided(two_sided, lengths)


def near_orthogonal(n, defects):
  """Returns U diag(1 + defects) Vᵀ in float64."""
  return (qr(n, n) * (1 + np.asarray(defects))) @ qr(n, n, 1)


NOISY = qr(200, 30) + 1e-4 * gaussian(200, 30)
LARGE = {
  'scaled': 1.001 * qr(100, 100),
  'rank deficient': qr(80, 80)[:, :40] @ qr(80, 80, 1)[:40],
  'clustered': near_orthogonal(96, [3e-4] * 48 + [-3e-4] * 48),
  'spread': near_orthogonal(96, np.geomspace(1e-9, 1e-2, 96)),
  'one direction': near_orthogonal(96, [1e-3] + [0] * 95),
  'shrinking': near_orthogonal(64, np.linspace(-1, 0, 64)),
  'tall': NOISY,
  'wide': NOISY.T,
  'gaussian': gaussian(50, 70),
}
# LAPACK's singular values are right to a small multiple of n·u·‖W‖: 1e-13 for
# n <= 200. Used only here; the exact check above needs no such allowance.
SVD_ERROR = 1e-13


@pytest.mark.parametrize('name', LARGE)
def test_bounds_are_above_the_largest_singular_value_and_close(name):
  w = LARGE[name]
  largest = np.linalg.svd(w, compute_uv=False)[0]
  b = norms.spectral_norm_bound(w)
  assert b >= largest * (1 - SVD_ERROR)
  # ‖W‖² <= 1 + n^(1/16)·‖D‖₂, the derivation read from the other side.
  short = w if w.shape[0] >= w.shape[1] else w.T
  n = short.shape[1]
  defect = np.linalg.norm(short.T @ short - np.eye(n), 2)
  assert b <= math.sqrt(1 + n ** (1 / 16) * defect) * (1 + 1e-10)
  for scale in (1, 1e-200, 1e200):
    # n^(1/16384) for n <= 100, and rounding.
    close = norms.norm_bound(scale * w) / (scale * largest)
    assert 1 - SVD_ERROR <= close <= 1.0003
  if name == 'gaussian':  # Planted: fewer squarings.
    assert norms.norm_bound(w, 4) > 1.0003 * largest
