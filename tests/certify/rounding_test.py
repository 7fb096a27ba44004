"""Tests that the bound on rounding is above all errors, and not far.

Float32 is the arithmetic under test and float64 the exact one: 29 bits apart,
so that what float64 itself rounds (2⁻⁵³ against 2⁻²⁴) does not show.
"""

import numpy as np
import pytest

from lipnext_jax.certify import rounding

FLOAT32 = rounding.FLOAT32
UNIT = FLOAT32.unit


def float32_product(w, a, order):
  """Returns W a with float32 sums, term by term, in the given order."""
  terms = np.float32(w)[:, order] * np.float32(a)[order]  # Rounded once.
  return np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1]


def product_step(w):
  w = np.float64(w)
  return rounding.Product(
    spectral=np.linalg.norm(w, 2) * (1 + 1e-12),
    frobenius=np.linalg.norm(w) * (1 + 1e-12),
    length=w.shape[1],
    size=w.shape[0],
  )


def bound_of(steps, a):
  reach = rounding.propagate(steps, np.array([np.linalg.norm(a)]), FLOAT32)
  return reach.norm[0], reach.error[0]


def products():
  """Returns matrices and vectors; in some, all roundings go one way."""
  rng = np.random.default_rng(0)
  n = 64
  haar = np.linalg.qr(rng.normal(size=(n, n)))[0]
  yield 'haar', haar, rng.normal(size=n)
  yield 'gaussian', rng.normal(size=(n, n)), rng.normal(size=n)
  yield 'one row', np.full((1, 1024), 0.1), np.full(1024, 0.1)
  # 1 + u + u + …: each u is half a gap above 1, and is rounded away.
  swallowed = np.full((1, 512), UNIT)
  swallowed[0, 0] = 1
  yield 'swallowed', swallowed, np.ones(512)
  yield 'cancels', np.array([[1.0, -1, 1e-6]]), np.array([1e3, 1e3, 1.0])
  yield 'one entry', np.array([[1 / 3]]), np.array([1 / 3])
  yield 'zero', np.zeros((4, 4)), np.ones(4)
  yield 'below normal', np.full((2, 2), 1e-30), np.full(2, 1e-12)


PRODUCTS = {name: case for name, *case in products()}


@pytest.mark.parametrize('name', PRODUCTS)
def test_a_product_errs_by_less_than_its_bound_in_any_order(name):
  w, a = map(np.float32, PRODUCTS[name])
  exact = np.float64(w) @ np.float64(a)
  norm, error = bound_of([product_step(w)], np.float64(a))
  assert np.linalg.norm(exact) <= norm
  order = np.arange(len(a))
  for seed in range(3):
    computed = float32_product(w, a, order)
    assert np.linalg.norm(np.float64(computed) - exact) <= error
    order = np.random.default_rng(seed).permutation(order)
  if name == 'swallowed':  # Attained: (n − 1)·u of γ_n·|w|·|a|, within 1 %.
    lost = np.abs(float32_product(w, a, np.arange(512)) - exact).item()
    assert lost == pytest.approx(511 * UNIT)
    assert FLOAT32.gamma(512) * np.abs(w) @ np.abs(a) < 1.01 * lost


def test_adding_a_constant_and_pooling_round():
  lost = abs(float(np.float32(1) + np.float32(2 + 2**-22)) - (3 + 2**-22))
  _, error = bound_of([rounding.AddConstant(2.0, 1)], np.array([1.0]))
  assert lost <= error
  assert error == pytest.approx(3 * UNIT, rel=1e-6)
  _, error = bound_of([rounding.Pool(1000, 1)], np.array([1.0]))
  squares = np.full(1000, np.float32(1000**-0.5)) ** 2
  pooled = np.sqrt(np.add.accumulate(squares, dtype=np.float32)[-1])
  assert abs(float(pooled) - 1) <= error


def test_a_sum_that_starts_from_the_bias_is_covered():
  """A product with a bias may start its sums from the bias."""
  n = 512
  terms = np.full(n, UNIT, np.float32)  # Each is lost beside b = 1.
  folded = np.add.accumulate(np.append(np.float32(1), terms))[-1]
  lost = float(1 + np.sum(terms, dtype=np.float64) - folded)
  assert lost == n * UNIT
  product = product_step(np.ones((1, n)))._replace(length=n + 1)
  a = np.full(n, UNIT)
  _, error = bound_of([product, rounding.AddConstant(1.0, 1, n + 1)], a)
  assert lost <= error
  _, apart = bound_of([product, rounding.AddConstant(1.0, 1)], a)
  assert apart < lost  # Planted: the bias as an addition of its own.


def test_products_that_underflow_are_covered():
  """The square of 1e-20 is below the smallest float32 number."""
  a = np.full(4, 1e-20)
  _, error = bound_of([product_step(np.full((1, 4), 1e-20))], a)
  assert error >= 4e-40
  tiny = float(np.finfo(np.float32).tiny)
  constant = rounding.AddConstant(0.9 * tiny, 1)  # Flushed on its way in.
  _, error = bound_of([constant], np.zeros(1))
  assert error >= 0.9 * tiny
  # Squares of 1e-30 are zero: pooling loses all of ‖a‖.
  a = np.full(4, 1e-30)
  _, error = bound_of([rounding.Pool(4, 1)], a)
  assert error >= np.linalg.norm(a)
  with pytest.raises(ValueError, match='no bound'):
    FLOAT32.gamma(2**24)


# ── The shift ────────────────────────────────────────────────────────────────


def shift_step(r, tokens):
  spectral = max(1.0, np.linalg.norm(np.float64(r), 2)) * (1 + 1e-12)
  frobenius = np.linalg.norm(np.float64(r)) * (1 + 1e-12)
  factor = (2 * spectral**2 - 1) * (1 + 1e-12)
  return rounding.Shift(factor, spectral, frobenius, *r.shape, tokens)


def run_shift(r, a, dtype, *, joined):
  """Returns a + Rᵀ(S − I)R a on a ring of tokens, summed term by term.

  Args:
    r: [k, c].
    a: [tokens, c].
    dtype: of all arithmetic.
    joined: whether the sums of Rᵀ d start from a.
  """
  r, a = r.astype(dtype), a.astype(dtype)

  def sums(terms):
    return np.add.accumulate(terms, axis=-1, dtype=dtype)[..., -1]

  moved = sums(r[None] * a[:, None, :])
  d = np.roll(moved, 1, axis=0) - moved
  terms = r.T[None] * d[:, None, :]
  if joined:
    return sums(np.concatenate([a[..., None], terms], axis=-1))
  return a + sums(terms)


def shifts():
  """Returns R and features; in some, all roundings go one way."""
  rng = np.random.default_rng(0)
  q = np.linalg.qr(rng.normal(size=(32, 32)))[0]
  for scale in (1.0, 1.3, 0.5):
    yield f'haar {scale}', scale * q[:8], rng.normal(size=(6, 32))
  turns = np.array([[0.1], [1 / 3], [0.1], [0.7]])
  yield 'one row', np.full((1, 1024), 1 / 32), turns * np.ones((4, 1024))
  # R a: u is lost beside 1 a thousand times, on every other token alone.
  swallowed = np.full((1, 1024), UNIT)
  swallowed[0, 0] = 1
  yield 'swallowed', swallowed, np.ones((4, 1024)) * [[1], [-1], [1], [-1]]
  yield 'large', q[:8], 1e6 + rng.random((6, 32))
  yield 'below normal', q[:4], 1e-38 * rng.normal(size=(6, 32))


SHIFTS = {name: case for name, *case in shifts()}


def shift_ratio(r, a, *, joined, **fault):
  """Returns the error of float32 over its bound, with a fault in the step."""
  r, a = np.float32(r), np.float32(a)
  exact = run_shift(r, a, np.float64, joined=joined)
  error = np.linalg.norm(run_shift(r, a, np.float32, joined=joined) - exact)
  step = shift_step(r, len(a))._replace(**fault)
  norm = np.linalg.norm(np.float64(a))
  reach = rounding.propagate([step], np.array([norm]), FLOAT32)
  assert np.linalg.norm(exact) <= reach.norm[0] or fault
  return error / reach.error[0]


@pytest.mark.parametrize('name', SHIFTS)
def test_a_shift_errs_by_less_than_its_bound(name):
  for joined in (True, False):
    assert 0 < shift_ratio(*SHIFTS[name], joined=joined) < 1


@pytest.mark.parametrize(
  ('name', 'fault'),
  [
    ('swallowed', {'frobenius': 0.0}),  # Without the products.
    ('swallowed', {'channels': 16}),  # A sum of 16 terms where 1024 are.
    # Without the three sums.
    ('large', {'factor': 0.0, 'frobenius': 0.0, 'spectral': 0.0}),
  ],
)
def test_the_check_of_shifts_rejects(name, fault):
  assert shift_ratio(*SHIFTS[name], joined=False, **fault) > 1


def test_an_error_that_came_in_is_stretched():
  """It grows by 3 in a product, and by 2‖R‖² − 1 in a ring of two tokens."""
  first = rounding.AddConstant(0.0, 8)
  _, e = bound_of([first], np.array([1.0]))
  r = 1.1 * np.eye(4)
  flipped = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]) * e / 2**0.5
  moved = np.linalg.norm(run_shift(r, flipped, np.float64, joined=True))
  assert moved == pytest.approx(1.42 * e)
  for step, stretched in (
    (product_step(3 * np.eye(4)), 3 * e),
    (shift_step(r, 2), moved),
  ):
    _, total = bound_of([first, step], np.array([1.0]))
    _, alone = bound_of([step], np.array([1.0]))
    assert total >= stretched + alone * (1 - 1e-6)
