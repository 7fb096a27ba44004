"""Tests FastExp: float64 oracles, closed forms of its drift, product counts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax import optim
from tests.optim.steps import EPS
from tests.optim.steps import low
from tests.optim.steps import taylor

KINDS = {  # k → eigen-angles [k] of a skew matrix of any norm.
  'dense': lambda k: np.linspace(1, 2, k),
  'equal': np.ones,
  'ill-conditioned': lambda k: np.geomspace(1, 1e-8, k),
  'rank-2': lambda k: np.eye(1, k)[0],
}


def skew_matrix(n, norm, kind='dense', seed=0, dtype=np.float32):
  """Returns a skew matrix [n, n] of a norm, with eigen-angles of a kind."""
  rng = np.random.default_rng(seed)
  q = scipy.linalg.qr(rng.normal(size=(n, n)))[0][:, : n // 2 * 2]
  a = q @ np.kron(np.diag(KINDS[kind](n // 2)), [[0, -1], [1, 0]]) @ q.T
  a = (norm * a / np.linalg.norm(a)).astype(dtype)
  return (a - a.T) / 2


def check_expm1(out, a):
  """Raises unless `out` is FastExp − I of one float32 skew matrix.

  Below norm 1: the truncated series. The products round by n·eps/2·‖A‖_F²
  (the standard bound), the few sums by eps/2·‖A‖_F each.

  From 1 on: the exponential. A product of matrices with singular values up to
  2 rounds each entry by about eps·4/√n (rounding errors as random signs;
  Higham & Mary 2019), 4√n·eps in all, and s = log2‖A‖₂ squarings double what
  is there: 4√n·eps·‖A‖₂.
  """
  a64, out = np.asarray(a, np.float64), np.asarray(out, np.float64)
  n, norm = len(a), np.linalg.norm(a64)
  if norm < 1:
    order = 2 + (norm >= 0.05) + (norm >= 0.25)
    want = taylor(a64, order)
    tolerance = EPS * norm * (3 + n * norm)
  else:
    want = scipy.linalg.expm(a64) - np.eye(n)
    tolerance = 4 * math.sqrt(n) * EPS * max(1, np.linalg.norm(a64, 2))
  error = np.linalg.norm(out - want)
  assert error <= tolerance, (n, norm, error / tolerance)


jit_expm1 = jax.jit(optim.fast_expm1)
jit_projected = jax.jit(
  functools.partial(optim.fast_expm1, large_steps='projection')
)
NORMS = (0, 1e-6, 1e-3, 0.049, 0.051, 0.24, 0.26, 0.95, 1.05, 3, 10, 30, 100)


def stack_of(n, norms):
  """Returns skew matrices of all kinds and norms, [kinds·norms, n, n]."""
  return np.stack(
    [skew_matrix(n, x, kind, i) for kind in KINDS for i, x in enumerate(norms)]
  )


@pytest.mark.parametrize('n', [2, 5, 65])
def test_fast_expm1_matches_its_definition(n):
  """Each matrix of a stack takes the branch of its own norm."""
  stack = stack_of(n, NORMS)
  out = jit_expm1(stack.reshape(len(KINDS), -1, n, n))
  assert out.shape == (len(KINDS), len(NORMS), n, n)
  for a, e in zip(stack, np.reshape(out, stack.shape), strict=True):
    check_expm1(e, a)
    assert np.any(a) or not np.any(e)


FAULTS = {  # Name → (wrong expm1, norm at which it must be seen).
  'dropped term, order 2': (lambda a: a, 0.049),
  'dropped term, order 3': (lambda a: taylor(a, 2), 0.24),
  'dropped term, order 4': (lambda a: taylor(a, 3), 0.95),
  'dropped term, exact': (lambda a: taylor(a, 6), 3),
  'transposed product': (lambda a: a + a @ a.T / 2, 0.049),
  'scaled by 1.001': (lambda a: 1.001 * jit_expm1(a), 1e-3),
  'bfloat16 products': (lambda a: a + low(low(a) @ low(a)) / 2, 0.049),
  'identity subtracted': (lambda a: optim.fast_exp(a) - jnp.eye(len(a)), 1e-3),
  'exact where order 2 is asked for': (
    functools.partial(optim.fast_expm1, thresholds=(0, 0, 0)),
    0.049,
  ),
}


@pytest.mark.parametrize(('fault', 'norm'), FAULTS.values(), ids=FAULTS)
def test_the_definition_rejects(fault, norm):
  for kind in ('dense', 'rank-2'):
    a = jnp.asarray(skew_matrix(16, norm, kind))
    check_expm1(jit_expm1(a), a)
    with pytest.raises(AssertionError):
      check_expm1(fault(a), a)


@pytest.mark.parametrize('fn', [jit_expm1, jit_projected])
@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e19, 1e5])
def test_what_has_no_exponential_is_not_finite_and_stays_alone(bad, fn):
  stack = np.stack([skew_matrix(4, 0.2)] * 3)
  stack[1, 0, 1], stack[1, 1, 0] = bad, -bad
  first, broken, last = fn(stack)
  assert not np.any(np.isfinite(broken[:2, :2]))
  check_expm1(first, stack[0])
  check_expm1(last, stack[2])


@pytest.mark.parametrize('norm', [0.2, 1.1, 3e4])
def test_float64_is_float64_and_thresholds_are_arguments(norm):
  a = skew_matrix(8, norm, dtype=np.float64)
  eye = np.eye(8)
  # As in check_expm1 and check_projected, and as much again for SciPy.
  eps = np.finfo(np.float64).eps * max(1, norm)
  for curve, want, rounding in (
    ('exponential', scipy.linalg.expm(a), 8 * math.sqrt(8) * eps),
    ('projection', scipy.linalg.polar(eye + a)[0], 8 * 8 * eps),
  ):
    with jax.enable_x64(True):
      options = {'thresholds': (0, 0, 0), 'large_steps': curve}
      out = optim.fast_expm1(jnp.asarray(a), **options)
    assert out.dtype == jnp.float64
    assert np.linalg.norm(np.asarray(out) + eye - want) < rounding


def test_bad_arguments_raise():
  for thresholds in ((1, 0.5, 2), (0.1, 0.2)):
    with pytest.raises(ValueError, match='three ascending'):
      optim.fast_expm1(jnp.zeros((2, 2)), thresholds=thresholds)
  with pytest.raises(ValueError, match=r"\['exponential', 'projection'\]"):
    optim.fast_expm1(jnp.zeros((2, 2)), large_steps='cayley')


def check_projected(out, a):
  """Raises unless I + `out` is the float64 polar factor of I + A, and turns.

  The tolerance is that of a polar factor, 4n·eps times the condition of I + A,
  which is at most ‖I + A‖₂. The angles are the closed form, atan(t), moved by
  no more than the factor is.
  """
  a64 = np.asarray(a, np.float64)
  eye = np.eye(len(a))
  got = eye + np.asarray(out, np.float64)
  rounding = 4 * len(a) * EPS
  tolerance = rounding * np.linalg.norm(eye + a64, 2)
  assert np.linalg.norm(got - scipy.linalg.polar(eye + a64)[0]) <= tolerance
  assert np.linalg.norm(got.T @ got - eye) <= rounding
  angles = np.sort(np.angle(np.linalg.eigvals(got)))
  want = np.sort(np.arctan(np.linalg.eigvals(a64).imag))
  np.testing.assert_allclose(angles, want, atol=tolerance, rtol=0)


@pytest.mark.parametrize('n', [2, 5, 65])
def test_projected_steps_match_their_definition(n):
  """No plane makes a quarter turn, for angles up to 6e4."""
  stack = stack_of(n, (1.05, 3, 30, 1e3))
  for a, e in zip(stack, jit_projected(stack), strict=True):
    check_projected(e, a)
  small = stack_of(n, (1e-3, 0.049, 0.24, 0.95))
  np.testing.assert_array_equal(jit_projected(small), jit_expm1(small))
  largest = skew_matrix(8, 6e4, 'ill-conditioned')
  q = np.eye(8) + np.asarray(jit_projected(largest), np.float64)
  assert np.linalg.norm(q.T @ q - np.eye(8)) < 4 * 8 * EPS
  # Angle 90° − 1/t: to the rounding of a float32 matrix, its cosine is >= 0.
  assert np.min(np.linalg.eigvals(q).real) > -4 * 8 * EPS


def test_the_projection_rejects():
  a, eye = skew_matrix(16, 3), np.eye(16)
  right = jit_projected(a)
  check_projected(right, a)
  cayley = np.linalg.solve(eye - a / 2, eye + a / 2) - eye
  for fault in (jit_expm1(a), cayley, right.T, a, low(right)):
    with pytest.raises(AssertionError):
      check_projected(fault, a)


# Order → a norm just inside its band, |p_k(it)|² − 1 of its Taylor polynomial
# of e^{it}, and another order.
DRIFTS = [
  (2, 0.049, lambda t: t**4 / 4, 3),
  (3, 0.24, lambda t: -(t**4) / 12 + t**6 / 36, 4),
  (4, 0.95, lambda t: -(t**6) / 72 + t**8 / 576, 3),
]


@pytest.mark.parametrize(('order', 'norm', 'closed_form', 'other'), DRIFTS)
def test_drift_is_the_closed_form_of_the_order(order, norm, closed_form, other):
  """FᵀF − I, F = FastExp(A), has the eigenvalues of the closed form."""
  n = 12
  a = skew_matrix(n, norm, dtype=np.float64)
  want = np.sort(closed_form(np.abs(np.linalg.eigvals(a).imag)))

  def error(step):
    f = np.eye(n) + np.asarray(step)
    return np.max(np.abs(np.linalg.eigvalsh(f.T @ f - np.eye(n)) - want))

  with jax.enable_x64(True):
    got = optim.fast_expm1(jnp.asarray(a))
  # The product and the eigenvalues round by some n·eps: far below the drift
  # (1e-11 is the smallest angle's).
  rounding = 4 * n * 2.3e-16
  assert error(got) <= rounding
  assert error(taylor(a, order)) <= rounding < error(taylor(a, other))
