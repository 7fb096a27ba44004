"""FastExp against float64 oracles, its closed-form drift, its product count."""

import functools
import math

import hypothesis
from hypothesis import strategies as st
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax.optim import exponential
from lipnext_jax.optim import fast_exp
from lipnext_jax.optim import fast_expm1

EPS = float(np.finfo(np.float32).eps)
KINDS = ('dense', 'equal', 'ill-conditioned', 'rank-2')
ORDERS = {2: 0.049, 3: 0.24, 4: 0.95}  # Order → a norm just inside its band.


def spectrum(n, kind):
  """Eigen-angles of a skew matrix, unnormalised, [n // 2]."""
  return {
    'dense': np.linspace(1, 2, n // 2),
    'equal': np.ones(n // 2),
    'ill-conditioned': np.geomspace(1, 1e-8, n // 2),
    'rank-2': np.eye(1, n // 2)[0],
  }[kind]


def skew_matrix(n, norm, kind='dense', seed=0, dtype=np.float32):
  """A skew matrix with ‖A‖_F = norm and eigen-angles of a kind, [n, n]."""
  rng = np.random.default_rng(seed)
  q = scipy.linalg.qr(rng.normal(size=(n, n)))[0]
  a = np.zeros((n, n))
  for i, t in enumerate(spectrum(n, kind)):
    a[2 * i, 2 * i + 1], a[2 * i + 1, 2 * i] = -t, t
  a = q @ a @ q.T
  a = norm * a / max(np.linalg.norm(a), 1e-300)
  a = a.astype(dtype)
  return (a - a.T) / 2


def taylor(a, order):
  """Σ_{1<=k<=order} A^k/k! in the dtype of A."""
  term = out = a
  for k in range(2, order + 1):
    term = term @ a / k
    out = out + term
  return out


def check_expm1(fn, a):
  """Raises unless `fn` is FastExp − I of one float32 skew matrix.

  Below norm 1: the truncated series. The products round by n·eps/2·‖A‖_F²
  (the standard bound), the few sums by eps/2·‖A‖_F each.

  From 1 on: the exponential. A product of matrices with singular values up to
  2 rounds each entry by about eps·4/√n (rounding errors as random signs;
  Higham & Mary 2019), 4√n·eps in all, and s = log2‖A‖₂ squarings double what
  is there: 4√n·eps·‖A‖₂.
  """
  a64 = np.asarray(a, np.float64)
  n, norm = len(a), np.linalg.norm(a64)
  out = np.asarray(fn(jnp.asarray(a)), np.float64)
  if norm < 1:
    order = 2 + (norm >= 0.05) + (norm >= 0.25)
    want = taylor(a64, order)
    tolerance = EPS * norm * (3 + n * norm)
  else:
    want = scipy.linalg.expm(a64) - np.eye(n)
    tolerance = 4 * math.sqrt(n) * EPS * max(1, np.linalg.norm(a64, 2))
  error = np.linalg.norm(out - want)
  assert error <= tolerance, (n, norm, error / tolerance)


jit_expm1 = jax.jit(fast_expm1)


@pytest.mark.parametrize(
  'norm', [0, 1e-6, 1e-3, 0.049, 0.051, 0.24, 0.26, 0.95, 1.05, 3, 10, 30, 100]
)
@pytest.mark.parametrize('n', [2, 5, 65])
@pytest.mark.parametrize(
  'kind', ['dense', 'equal', 'ill-conditioned', 'rank-2']
)
def test_fast_expm1_matches_its_definition(n, norm, kind):
  check_expm1(jit_expm1, skew_matrix(n, norm, kind))


@hypothesis.given(
  seed=st.integers(0, 2**31),
  norm=st.floats(1e-4, 100),
  kind=st.sampled_from(KINDS),
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_fast_expm1_matches_its_definition_anywhere(seed, norm, kind):
  # The float32 norm decides the branch: stay a rounding away from the edges.
  hypothesis.assume(all(abs(norm / t - 1) > 1e-5 for t in (0.05, 0.25, 1)))
  check_expm1(jit_expm1, skew_matrix(12, norm, kind, seed))


@pytest.mark.parametrize('order', ORDERS)
def test_truncation_stays_within_the_remainder_of_the_series(order):
  a = skew_matrix(16, ORDERS[order], 'rank-2').astype(np.float64)
  out = np.asarray(fast_exp(jnp.float32(a)), np.float64)
  angle = np.linalg.norm(a, 2)
  # Of a skew matrix: |e^{it} − p(it)| <= t^{k+1}/(k+1)!; + float32 rounding.
  remainder = angle ** (order + 1) / math.factorial(order + 1)
  error = np.linalg.norm(out - scipy.linalg.expm(a), 2)
  assert remainder / 2 < error < remainder + 4 * EPS


def test_one_by_one_is_zero():
  assert fast_expm1(jnp.zeros((1, 1))).tolist() == [[0.0]]


def test_zero_gives_exactly_zero():
  assert not np.any(fast_expm1(jnp.zeros((3, 4, 4))))
  np.testing.assert_array_equal(fast_exp(jnp.zeros((4, 4))), np.eye(4))


@pytest.mark.parametrize('lead', [(), (1,), (5,), (2, 3)])
def test_each_matrix_takes_the_branch_of_its_own_norm(lead):
  norms = np.resize([1e-3, 0.049, 0.24, 0.95, 40], max(1, math.prod(lead)))
  stack = np.stack([skew_matrix(6, x, seed=i) for i, x in enumerate(norms)])
  out = np.asarray(fast_expm1(jnp.asarray(stack.reshape(*lead, 6, 6))))
  assert out.shape == (*lead, 6, 6)
  for a, e in zip(stack, out.reshape(-1, 6, 6), strict=True):
    check_expm1(lambda _, e=e: e, a)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e19, 1e5])
def test_what_has_no_exponential_is_not_finite_and_stays_alone(bad):
  stack = np.stack([skew_matrix(4, 0.2)] * 3)
  stack[1, 0, 1], stack[1, 1, 0] = bad, -bad
  out = np.asarray(fast_expm1(jnp.asarray(stack)))
  assert not np.any(np.isfinite(out[1][:2, :2]))
  check_expm1(lambda _: out[0], stack[0])
  check_expm1(lambda _: out[2], stack[2])


@pytest.mark.parametrize('norm', [1e-3, 0.2, 0.9, 1.1, 100, 3e4])
def test_float64_is_float64(norm):
  a = skew_matrix(8, norm, dtype=np.float64)
  with jax.enable_x64(True):
    out = fast_expm1(jnp.asarray(a), thresholds=(0, 0, 0))
    assert out.dtype == jnp.float64
  error = np.linalg.norm(np.asarray(out) + np.eye(8) - scipy.linalg.expm(a))
  # As in check_expm1, and as much again for SciPy.
  assert error < 8 * math.sqrt(8) * np.finfo(np.float64).eps * max(1, norm)


def test_thresholds_are_arguments():
  a = skew_matrix(8, 0.9)
  exact = np.asarray(fast_expm1(jnp.asarray(a), thresholds=(0, 0, 0)))
  second = np.asarray(fast_expm1(jnp.asarray(a), thresholds=(1, 1, 1)))
  a = a.astype(np.float64)
  want = scipy.linalg.expm(a) - np.eye(8)
  assert np.linalg.norm(exact - want) < 8 * math.sqrt(8) * EPS
  assert np.linalg.norm(second - taylor(a, 2)) < EPS * 0.9 * (3 + 8 * 0.9)


@pytest.mark.parametrize('thresholds', [(1, 0.5, 2), (0.1, 0.2)])
def test_bad_thresholds_raise(thresholds):
  with pytest.raises(ValueError, match='three ascending'):
    fast_expm1(jnp.zeros((2, 2)), thresholds=thresholds)


@pytest.mark.parametrize('shape', [(3,), (2, 3), (4, 2, 3)])
def test_not_square_raises(shape):
  with pytest.raises(ValueError, match='square'):
    fast_expm1(jnp.zeros(shape))


# -- The projection, for large steps ------------------------------------------

jit_projected = jax.jit(functools.partial(fast_expm1, large_steps='projection'))


def check_projected(fn, a):
  """Raises unless I + `fn` is the float64 polar factor of I + A, and turns.

  The tolerance is that of a polar factor, 4n·eps times the condition of I + A,
  which is at most ‖I + A‖₂. The angles are the closed form, atan(t), moved by
  no more than the factor is.
  """
  a64 = np.asarray(a, np.float64)
  eye = np.eye(len(a))
  got = eye + np.asarray(fn(jnp.asarray(a)), np.float64)
  rounding = 4 * len(a) * EPS
  tolerance = rounding * np.linalg.norm(eye + a64, 2)
  assert np.linalg.norm(got - scipy.linalg.polar(eye + a64)[0]) <= tolerance
  assert np.linalg.norm(got.T @ got - eye) <= rounding
  angles = np.sort(np.angle(np.linalg.eigvals(got)))
  want = np.sort(np.arctan(np.linalg.eigvals(a64).imag))
  np.testing.assert_allclose(angles, want, atol=tolerance, rtol=0)


@pytest.mark.parametrize('norm', [1.05, 3, 30, 1e3])
@pytest.mark.parametrize('n', [2, 5, 65])
@pytest.mark.parametrize('kind', KINDS)
def test_projected_steps_match_their_definition(n, norm, kind):
  check_projected(jit_projected, skew_matrix(n, norm, kind))


def test_only_large_steps_are_projected():
  stack = np.stack([skew_matrix(6, x) for x in (1e-3, 0.049, 0.24, 0.95, 3)])
  out = jit_projected(jnp.asarray(stack))
  np.testing.assert_array_equal(out[:4], jit_expm1(jnp.asarray(stack[:4])))
  check_projected(lambda _: out[4], stack[4])


def test_no_plane_turns_by_a_quarter_however_large_the_step():
  a = skew_matrix(8, 6e4, 'ill-conditioned')
  q = np.eye(8) + np.asarray(jit_projected(jnp.asarray(a)), np.float64)
  assert np.linalg.norm(q.T @ q - np.eye(8)) < 4 * 8 * EPS
  # Angle 90° − 1/t: to the rounding of a float32 matrix, its cosine is >= 0.
  assert np.min(np.linalg.eigvals(q).real) > -4 * 8 * EPS


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e19, 1e5])
def test_what_has_no_projection_is_not_finite(bad):
  a = skew_matrix(4, 0.2)
  a[0, 1], a[1, 0] = bad, -bad
  assert not np.any(np.isfinite(jit_projected(jnp.asarray(a))[:2, :2]))


def test_projection_in_float64_is_float64():
  a = skew_matrix(8, 30, dtype=np.float64)
  with jax.enable_x64(True):
    out = fast_expm1(jnp.asarray(a), large_steps='projection')
    assert out.dtype == jnp.float64
  want = scipy.linalg.polar(np.eye(8) + a)[0] - np.eye(8)
  assert (
    np.linalg.norm(np.asarray(out) - want)
    < 4 * 8 * np.finfo(np.float64).eps * 30
  )


def test_unknown_large_steps_raise():
  with pytest.raises(ValueError, match=r"\['exponential', 'projection'\]"):
    fast_expm1(jnp.zeros((2, 2)), large_steps='cayley')


# -- Drift: the closed forms --------------------------------------------------

DRIFT = {  # |p_k(it)|² − 1 of the Taylor polynomial of e^{it}.
  2: lambda t: t**4 / 4,
  3: lambda t: -(t**4) / 12 + t**6 / 36,
  4: lambda t: -(t**6) / 72 + t**8 / 576,
}


def check_drift(fn, order):
  """Raises unless FᵀF − I, F = I + fn(A), has the eigenvalues DRIFT[order]."""
  n, norm = 12, ORDERS[order]
  a = skew_matrix(n, norm, 'dense', dtype=np.float64)
  with jax.enable_x64(True):
    f = np.eye(n) + np.asarray(fn(jnp.asarray(a)))
  drift = np.linalg.eigvalsh(f.T @ f - np.eye(n))
  angles = np.abs(np.linalg.eigvals(a).imag)
  want = np.sort(DRIFT[order](angles))
  # The product and the eigenvalues round by some n·eps: far below the drift
  # (1e-11 is the smallest angle's).
  np.testing.assert_allclose(drift, want, atol=4 * n * 2.3e-16, rtol=0)


@pytest.mark.parametrize('order', ORDERS)
def test_drift_is_the_closed_form(order):
  check_drift(fast_expm1, order)


def test_drift_has_the_published_signs():
  angles = np.array([0.01, 0.1, 0.5, 0.99])
  assert np.all(DRIFT[2](angles) > 0)
  assert np.all(DRIFT[3](angles) < 0)
  assert np.all(DRIFT[4](angles) < 0)


# -- Products, counted --------------------------------------------------------


def products(jaxpr, branch):
  """dot_generals executed once, `branch` being taken in every 4-way switch."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (_, batch) = eqn.params['dimension_numbers']
      assert batch == ((), ()), 'a batched product: the switch was vmapped'
      count += 1
    subs = list(core.jaxprs_in_params(eqn.params))
    if eqn.primitive.name == 'cond' and len(subs) == 4:
      subs = [subs[branch]]
    count += sum(products(sub, branch) for sub in subs)
  return count


def check_products(fn, lead):
  jaxpr = jax.make_jaxpr(fn)(jnp.zeros((*lead, 8, 8))).jaxpr
  # Orders 2, 3, 4; the exact branch: 3, and 1 in the body of its loop.
  assert [products(jaxpr, i) for i in range(4)] == [1, 2, 2, 3 + 1]


@pytest.mark.parametrize('lead', [(), (5,), (2, 3)])
def test_orders_cost_one_two_and_two_products(lead):
  check_products(fast_expm1, lead)


def test_precision_is_explicit_in_every_product():
  a = jnp.zeros((2, 4, 4))

  def text(default):
    with jax.default_matmul_precision(default):
      return str(jax.make_jaxpr(fast_expm1)(a))

  assert text('bfloat16') == text('highest')
  assert 'precision=None' not in text('bfloat16')
  low = functools.partial(fast_expm1, precision='bfloat16')
  assert 'HIGHEST' not in str(jax.make_jaxpr(low)(a))


# -- Planted faults: the checks above reject them -----------------------------


def bf16_matmul(x, y):
  return (x.astype(jnp.bfloat16) @ y.astype(jnp.bfloat16)).astype(x.dtype)


FAULTS = {  # Name → (wrong expm1, norm at which it must be seen).
  'dropped term, order 2': (lambda a: a, 0.049),
  'dropped term, order 3': (lambda a: taylor(a, 2), 0.24),
  'dropped term, order 4': (lambda a: taylor(a, 3), 0.95),
  'dropped term, exact': (lambda a: taylor(a, 6), 3),
  'transposed product': (lambda a: a + a @ a.T / 2, 0.049),
  'scaled by 1.001': (lambda a: 1.001 * fast_expm1(a), 1e-3),
  'bfloat16 products': (lambda a: a + bf16_matmul(a, a) / 2, 0.049),
  'identity subtracted': (lambda a: fast_exp(a) - jnp.eye(len(a)), 1e-3),
  'one squaring short': (
    lambda a: 2 * fast_expm1(a / 4) + jnp.square(fast_expm1(a / 4)),
    10,
  ),
  'exact where order 2 is asked for': (
    functools.partial(fast_expm1, thresholds=(0, 0, 0)),
    0.049,
  ),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('kind', ['dense', 'rank-2'])
def test_the_definition_rejects(fault, kind):
  fn, norm = FAULTS[fault]
  a = skew_matrix(16, norm, kind)
  check_expm1(fast_expm1, a)
  with pytest.raises(AssertionError):
    check_expm1(fn, a)


def one_newton_schulz_step(a):
  x = jnp.eye(len(a)) + a
  x = x / jnp.linalg.norm(x, 2)
  return x @ (3 * jnp.eye(len(a)) - x.T @ x) / 2 - jnp.eye(len(a))


def cayley(a):
  eye = np.eye(len(a))
  return np.linalg.solve(eye - a / 2, eye + a / 2) - eye


PROJECTION_FAULTS = {
  'the exponential': fast_expm1,
  'Cayley': cayley,
  'too few iterations': one_newton_schulz_step,
  'transposed': lambda a: jit_projected(a).T,
  'not projected': lambda a: a,
  'bfloat16 result': lambda a: jit_projected(a).astype(jnp.bfloat16),
}


@pytest.mark.parametrize('fault', PROJECTION_FAULTS)
def test_the_projection_rejects(fault):
  with pytest.raises(AssertionError):
    check_projected(PROJECTION_FAULTS[fault], skew_matrix(16, 3))


@pytest.mark.parametrize('order', ORDERS)
def test_the_drift_rejects_another_order(order):
  other = {2: 3, 3: 4, 4: 3}[order]
  with pytest.raises(AssertionError):
    check_drift(functools.partial(taylor, order=other), order)


def test_the_count_rejects_a_vmapped_switch():
  one = jax.vmap(lambda a: exponential.fast_expm1(a))
  with pytest.raises(AssertionError):
    check_products(one, (5,))


def test_the_count_rejects_separate_powers():
  with pytest.raises(AssertionError):
    check_products(functools.partial(taylor, order=4), ())
