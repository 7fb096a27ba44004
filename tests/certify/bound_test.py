"""The Lipschitz bound: above the truth, exactly; and not far above it.

"Exactly" is meant: floats are rationals, so that b >= ‖W‖₂ is the question
whether b² I − WᵀW is positive semi-definite, which Bareiss' elimination
decides in integers without a rounding.
"""

from fractions import Fraction
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax.certify import bound


def qr(m, n, seed=0):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(m, n), n)))[0]
  return q[:m]


# ── Exact arithmetic ─────────────────────────────────────────────────────────


def exceeds_norm(b, w):
  """Whether b > ‖w‖₂, decided exactly: all leading minors of b²I − WᵀW > 0."""
  w = np.asarray(w, np.float64)
  w = w if w.shape[0] >= w.shape[1] else w.T
  columns = [[Fraction(float(v)) for v in column] for column in w.T]
  gram = [[sum(map(_times, u, v)) for v in columns] for u in columns]
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


def _times(x, y):
  return x * y


def test_the_exact_decision_is_right_on_known_norms():
  w = np.diag([1.0, 3.0, 2.0])[:, [2, 0, 1]]
  assert exceeds_norm(Fraction(3) + Fraction(1, 10**40), w)
  assert not exceeds_norm(Fraction(3) - Fraction(1, 10**40), w)
  assert not exceeds_norm(3.0, w)  # Strict.
  wide = np.array([[3.0, 4.0]])
  assert exceeds_norm(np.nextafter(5.0, 6), wide)
  assert not exceeds_norm(np.nextafter(5.0, 4), wide)


def small_matrices():
  """Matrices of a few rows, in and far from the orthogonal group."""
  rng = np.random.default_rng(0)
  yield 'haar float32', qr(5, 5).astype(np.float32)
  yield 'haar float64', qr(4, 4, 1)
  yield 'scaled', 1.001 * qr(4, 4, 2)
  yield 'shrunk', 0.5 * qr(4, 4, 3)
  yield 'rank one', np.outer([1.0, 2, 3], [0.1, 0.2, 0.3])
  yield 'zero', np.zeros((3, 3))
  yield 'gaussian', rng.normal(size=(4, 4))
  yield 'tall', qr(6, 3, 4).astype(np.float32)
  yield 'wide', qr(6, 3, 5).astype(np.float32).T
  yield 'cut', qr(5, 5, 6)[:3]
  yield 'one entry', np.array([[1 + 2**-52]])
  yield 'identity', np.eye(4)
  yield 'bfloat16', np.asarray(jnp.asarray(qr(4, 4, 7), jnp.bfloat16))
  yield 'huge', 1e40 * rng.normal(size=(3, 3))
  yield 'overflows squared', 1e160 * qr(3, 3, 8)
  yield 'tiny', 1e-170 * qr(3, 3, 9)
  yield 'subnormal', np.full((2, 2), 5e-324)
  yield 'mixed scales', np.diag([1.0, 1e-300]) @ qr(2, 2, 10)
  yield 'one large rest tiny', np.array([[1.0, 2**-27], [-(2**-27), 1.0]])


SMALL = dict(small_matrices())


def check_upper(fn, w):
  assert exceeds_norm(fn(w), w), 'below the norm'


@pytest.mark.parametrize('name', SMALL)
def test_bound_exceeds_the_norm_exactly(name):
  b = bound.spectral_norm_bound(SMALL[name])
  assert isinstance(b, float)
  assert b >= 1
  assert not math.isnan(b)
  if math.isfinite(b):  # Entries of 1e160 are bounded by inf: true, and said.
    check_upper(bound.spectral_norm_bound, SMALL[name])
  else:
    assert np.max(np.abs(SMALL[name])) > 1e150


def absorbed(m=4097):
  """[m, 1]: a one, and entries whose squares all round away one by one.

  2⁻²⁷ squared is 2⁻⁵⁴, half of the half-ulp of 1: summed after the 1, each is
  lost, and the true norm, sqrt(1 + (m − 1)·2⁻⁵⁴), is 1 + 2⁻⁴³ for m = 4097.
  """
  w = np.full((m, 1), 2.0**-27)
  w[0] = 1
  return w


def without_rounding(w):
  """Planted: the same bound with the rounding of WᵀW left out.

  The sum runs in order, as any BLAS is free to do.
  """
  gram = np.zeros((w.shape[1], w.shape[1]))
  for row in np.asarray(w, np.float64):
    gram += np.outer(row, row)
  d = gram - np.eye(len(gram))
  for _ in range(3):
    d = d @ d
  return math.sqrt(1 + np.linalg.norm(d) ** (1 / 8)) * (1 + 2**-50)


def test_rounding_of_the_products_is_accounted_for():
  check_upper(bound.spectral_norm_bound, absorbed())
  with pytest.raises(AssertionError, match='below the norm'):
    check_upper(without_rounding, absorbed())


def power_iteration(w, steps=20):
  """Planted: what training loops use. It approaches from below."""
  w = np.asarray(w, np.float64)
  v = np.ones(w.shape[1])
  for _ in range(steps):
    v = w.T @ (w @ v)
    v /= np.linalg.norm(v)
  return float(np.linalg.norm(w @ v))


def normalised_defect(w):
  """Planted: 1 + ‖WᵀW − I‖_F/√n, the defect that papers like to plot."""
  n = w.shape[1]
  d = w.T @ w - np.eye(n)
  return 1 + float(np.linalg.norm(d)) / math.sqrt(n)


def assumed_one(w):
  del w
  return 1.0


def one_bad_direction(n=6):
  """Orthogonal but for one singular value: 1.001."""
  u, v = qr(n, n, 11), qr(n, n, 12)
  return u @ np.diag([1.001] + [1.0] * (n - 1)) @ v


@pytest.mark.parametrize(
  'fault', [power_iteration, normalised_defect, assumed_one]
)
def test_exact_check_rejects(fault):
  w = one_bad_direction()
  check_upper(bound.spectral_norm_bound, w)
  with pytest.raises(AssertionError, match='below the norm'):
    check_upper(fault, w)


# ── Larger matrices: float64 singular values, and tightness ──────────────────


def near_orthogonal(n, defects, seed=0):
  """U diag(1 + defects) Vᵀ in float64, defects of length n."""
  return (qr(n, n, seed) * (1 + np.asarray(defects))) @ qr(n, n, seed + 1)


def large_matrices():
  rng = np.random.default_rng(5)
  yield 'scaled', 1.001 * qr(100, 100)
  yield 'rank deficient', qr(80, 80)[:, :40] @ qr(80, 80, 1)[:40]
  yield 'clustered', near_orthogonal(96, [3e-4] * 48 + [-3e-4] * 48)
  yield 'spread', near_orthogonal(96, np.geomspace(1e-9, 1e-2, 96))
  yield 'one direction', near_orthogonal(96, [1e-3] + [0] * 95)
  yield 'shrinking', near_orthogonal(64, np.linspace(-1, 0, 64))
  yield 'tall', qr(200, 30) + 1e-4 * rng.normal(size=(200, 30))
  yield 'wide', (qr(200, 30) + 1e-4 * rng.normal(size=(200, 30))).T
  yield 'gaussian', rng.normal(size=(50, 70))


LARGE = dict(large_matrices())
# LAPACK's singular values are right to a small multiple of n·u·‖W‖: 1e-13 for
# n <= 200. Used only here; the exact check above needs no such allowance.
SVD_ERROR = 1e-13


@pytest.mark.parametrize('name', LARGE)
def test_bound_exceeds_the_largest_singular_value(name):
  w = LARGE[name]
  largest = np.linalg.svd(w, compute_uv=False)[0]
  b = bound.spectral_norm_bound(w)
  assert b >= largest * (1 - SVD_ERROR)
  # ‖W‖² <= 1 + n^(1/16)·‖D‖₂, the derivation read from the other side.
  short = w if w.shape[0] >= w.shape[1] else w.T
  n = short.shape[1]
  defect = np.linalg.norm(short.T @ short - np.eye(n), 2)
  assert b <= math.sqrt(1 + n ** (1 / 16) * defect) * (1 + 1e-10)


@pytest.mark.parametrize('n', [64, 100, 256])
def test_bound_is_tight_for_float32_haar_matrices(n):
  g = np.random.default_rng(n).normal(size=(n, n)).astype(np.float32)
  w = np.linalg.qr(g)[0]  # In float32: a defect of about 1e-6.
  assert w.dtype == np.float32
  largest = np.linalg.svd(w.astype(np.float64), compute_uv=False)[0]
  b = bound.spectral_norm_bound(w)
  assert b >= largest * (1 - SVD_ERROR)
  assert b <= 1 + 3e-6
  # sqrt(1 + n^(1/16) δ) <= 1 + 0.71 δ and δ = 2(‖W‖ − 1) at least, unless a
  # singular value below 1 is the farthest.
  defect = np.linalg.norm(w.T.astype(np.float64) @ w - np.eye(n), 2)
  assert b - 1 <= 0.71 * defect
  assert b - 1 >= 0.5 * defect - SVD_ERROR


def test_bound_grows_with_the_matrix():
  for s in (1e-3, 1, 1e3, 1e12, 1e25, 1e38):
    b = bound.spectral_norm_bound(np.float32(s) * qr(8, 8).astype(np.float32))
    # n^(1/16) = 1.139 for n = 8; below 1 the bound is at least 1.
    assert s * (1 - 1e-6) <= b <= max(s, math.sqrt(2)) * 1.139


# ── The product over a model ─────────────────────────────────────────────────


def tree(depth=3, n=8, dtype=np.float32):
  rng = np.random.default_rng(0)

  def stack(seed):
    return np.stack([qr(n, n, seed + i) for i in range(depth)]).astype(dtype)

  return {
    'stem': {'Q': qr(n, n, 50).astype(dtype), 'bias': rng.normal(size=n)},
    'blocks': {
      'R': stack(10),
      'M': stack(30),
      'bias': rng.normal(size=(depth, n)),
      'pos': rng.normal(size=(depth, 2, 2, 1)),
    },
    'head': {'kernel': 9 * rng.normal(size=(4, n)), 'bias': np.zeros(4)},
  }


def exact_product(params):
  """Σ log of the norms, by LAPACK: M and Q once, R twice."""
  norms = {
    name: np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)[..., 0]
    for name, w in (
      ('Q', params['stem']['Q']),
      ('R', params['blocks']['R']),
      ('M', params['blocks']['M']),
    )
  }
  return float(norms['Q'] * np.prod(norms['M']) * np.prod(norms['R']) ** 2)


@pytest.mark.parametrize('scale', [1.0, 1.001, 1.3])
def test_bound_is_the_product_over_all_matrices(scale):
  params = tree()
  params['blocks']['R'] *= np.float32(scale)
  params['blocks']['M'][1] *= np.float32(scale)
  truth = exact_product(params)
  b = certify.lipschitz_bound({'params': params})
  assert truth * (1 - SVD_ERROR) <= b
  # Float32 rounding leaves all 10 factors 1 + 1e-6 at most; 7 are scaled, and
  # sqrt(1 + 8^(1/16)·(s² − 1)) <= s·(1 + 0.07·(s² − 1)).
  assert b <= truth * (1 + 1e-5) * (1 + 0.07 * (scale**2 - 1)) ** 7
  assert b == certify.lipschitz_bound(params)


def test_bounds_are_reported_for_every_layer():
  params = tree()
  params['blocks']['M'][2] *= 1.01
  bounds = certify.lipschitz_bounds(params)
  assert {name: len(b) for name, b in bounds.items()} == {
    'stem/Q': 1,
    'blocks/R': 3,
    'blocks/M': 3,
  }
  assert [b > 1.009 for b in bounds['blocks/M']] == [False, False, True]


def test_the_bound_is_the_product_of_the_reported_factors():
  params = {'R': np.eye(3)[None].repeat(2, 0) * 1.25, 'M': np.eye(3)[None]}
  bounds = certify.lipschitz_bounds(params)
  assert certify.bound_product(bounds) == certify.lipschitz_bound(params)
  with pytest.raises(ValueError, match='no orthogonal parameter'):
    certify.bound_product({})


def test_products_and_powers_round_up():
  # 8 and 16 factors, exactly: the float is never below the rational.
  for depth, seed in ((4, 0), (4, 1), (8, 2)):
    stack = np.stack([1.1 * qr(5, 5, 20 * seed + i) for i in range(depth)])
    params = {'R': stack, 'M': stack.transpose(0, 2, 1)}
    bounds = certify.lipschitz_bounds(params)
    single = [bound.spectral_norm_bound(w) for w in stack]
    for b, one in zip(bounds['R'], single, strict=True):
      assert Fraction(b) >= Fraction(one) ** 2
    exact = math.prod(Fraction(b) for layer in bounds.values() for b in layer)
    total = certify.lipschitz_bound(params)
    assert exact <= Fraction(total) <= exact * (1 + Fraction(1, 10**13))


def check_counts_r_twice(lipschitz):
  """A block M Rᵀ S R with R = 1.1·I and no shift maps x to 1.21·x.

  Two inputs at distance 1 are 1.21 apart afterwards: an actual pair.
  """
  n = 4
  r, m = 1.1 * np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32)
  x, y = np.eye(n)[0], np.zeros(n)
  apart = np.linalg.norm(m @ (r.T @ (r @ (x - y))))
  measured = apart / np.linalg.norm(x - y)
  assert measured <= lipschitz({'R': r, 'M': m}), 'R must count twice'


def test_r_counts_twice():
  check_counts_r_twice(certify.lipschitz_bound)
  with pytest.raises(AssertionError, match='R must count twice'):
    check_counts_r_twice(
      lambda p: certify.lipschitz_bound(p, multiplicity_fn=lambda _: 1)
    )


def test_a_user_brings_labels_and_multiplicities():
  params = {'layer': 1.5 * np.eye(3), 'scale': np.ones(3)}
  labels = {'layer': 'orthogonal', 'scale': 'euclidean'}
  once, thrice = (
    certify.lipschitz_bound(params, lambda _: labels, lambda _, k=k: k)
    for k in (1, 3)
  )
  assert 1.5 <= once < 1.6
  assert thrice == pytest.approx(once**3, rel=1e-14)


def test_device_arrays_and_host_arrays_agree():
  params = tree(depth=2)
  on_device = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  assert certify.lipschitz_bound(on_device) == certify.lipschitz_bound(params)


# ── What cannot be bounded ───────────────────────────────────────────────────


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_raise(bad):
  params = tree()
  params['blocks']['R'][1, 2, 3] = bad
  with pytest.raises(ValueError, match='not finite'):
    certify.lipschitz_bound(params)


def test_no_orthogonal_parameter_raises():
  with pytest.raises(ValueError, match='no orthogonal parameter'):
    certify.lipschitz_bound({'head': {'kernel': np.eye(2)}})


def test_a_leaf_that_no_rule_labels_raises():
  with pytest.raises(ValueError, match="'extra/W' matches no rule"):
    certify.lipschitz_bound({'R': np.eye(2), 'extra': {'W': np.eye(2)}})


@pytest.mark.parametrize('shape', [(), (3,)])
def test_what_is_no_matrix_raises(shape):
  with pytest.raises(ValueError, match='needs a matrix'):
    certify.lipschitz_bound({'R': np.ones(shape)})


@pytest.mark.parametrize('scale', [1e150, 1e154, 1e200, 1e300])
def test_matrices_whose_squares_overflow_have_a_bound(scale):
  w = scale * qr(8, 8)
  found = bound.spectral_norm_bound(w)
  assert found >= scale * (1 - 1e-12)


def test_float32_above_is_above():
  for value in (1.0, 1 + 1e-12, 1 + 6e-6, 1.5, np.pi):
    above = certify.float32_above(value)
    assert above.dtype == np.float32
    assert value < float(above) < value * (1 + 3e-7)
