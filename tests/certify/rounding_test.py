"""Tests that the bound on rounding is above all errors, and not far.

Float32 is the arithmetic under test and float64 the exact one: 29 bits apart,
so that what float64 itself rounds (2⁻⁵³ against 2⁻²⁴) does not show.
"""

import numpy as np
import pytest

from lipnext_jax.certify import norms
from lipnext_jax.certify import rounding

FLOAT32 = norms.FLOAT32
UNIT = FLOAT32.unit
ABOVE = 1 + 1e-12  # Raises norms that NumPy computed in float64.


def sums(terms, dtype=np.float32):
  """Adds up the last axis, term by term."""
  return np.add.accumulate(terms, axis=-1, dtype=dtype)[..., -1]


def product_step(w):
  spectral, frobenius = (np.linalg.norm(w, k) * ABOVE for k in (2, 'fro'))
  return rounding.Product(spectral, frobenius, w.shape[1], w.shape[0])


def bound_of(steps, a):
  reach = rounding.propagate(steps, np.array([np.linalg.norm(a)]), FLOAT32)
  return reach.norm[0], reach.error[0]


def swallowing(n):
  """A row 1, u, u, …: beside 1, each u is half a gap and is rounded away."""
  row = np.full((1, n), UNIT)
  row[0, 0] = 1
  return row


def random(*shape):
  return np.random.default_rng(0).normal(size=shape)


HAAR = np.linalg.qr(random(64, 64))[0]
# Matrices and vectors; in some, all roundings go one way.
PRODUCTS = {
  'haar': (HAAR, random(64)),
  'one row': (np.full((1, 1024), 0.1), np.full(1024, 0.1)),
  'swallowed': (swallowing(512), np.ones(512)),
  'cancels': (np.array([[1.0, -1, 1e-6]]), np.array([1e3, 1e3, 1.0])),
  'zero': (np.zeros((4, 4)), np.ones(4)),
  'below normal': (np.full((2, 2), 1e-30), np.full(2, 1e-12)),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_a_product_errs_by_less_than_its_bound_in_any_order(name):
  w, a = (np.float64(np.float32(x)) for x in PRODUCTS[name])
  norm, error = bound_of([product_step(w)], a)
  assert np.linalg.norm(w @ a) <= norm
  terms = np.float32(w) * np.float32(a)  # Rounded once.
  orders = [np.random.default_rng(i).permutation(len(a)) for i in range(2)]
  for order in (np.arange(len(a)), *orders):
    assert np.linalg.norm(sums(terms[:, order]) - w @ a) <= error
  if name == 'swallowed':  # Attained: (n − 1)·u of γ_n·|w|·|a|, within 1 %.
    lost = np.abs(sums(terms) - w @ a).item()
    assert lost == pytest.approx(511 * UNIT)
    assert FLOAT32.gamma(512) * np.abs(w) @ np.abs(a) < 1.01 * lost


def test_adding_a_constant_and_pooling_round():
  lost = abs(float(np.float32(1) + np.float32(2 + 2**-22)) - (3 + 2**-22))
  _, error = bound_of([rounding.AddConstant(2.0, 1)], np.ones(1))
  assert lost <= error
  assert error == pytest.approx(3 * UNIT, rel=1e-6)
  _, error = bound_of([rounding.Pool(1000, 1)], np.ones(1))
  pooled = np.sqrt(sums(np.full(1000, np.float32(1000**-0.5)) ** 2))
  assert abs(float(pooled) - 1) <= error


def test_a_sum_that_starts_from_the_bias_is_covered():
  n = 512
  a = np.full(n, UNIT)  # Each is lost beside the bias of 1.
  lost = 1 + np.sum(a) - float(sums(np.append(1, a)))
  assert lost == n * UNIT
  product = product_step(np.ones((1, n)))._replace(length=n + 1)
  _, error = bound_of([product, rounding.AddConstant(1.0, 1, n + 1)], a)
  assert lost <= error
  _, apart = bound_of([product, rounding.AddConstant(1.0, 1)], a)
  assert apart < lost  # Planted: the bias as an addition of its own.


def test_what_underflows_is_covered_and_too_many_roundings_have_no_bound():
  tiny = float(np.finfo(np.float32).tiny)
  for step, a, lost in (
    # The square of 1e-20 is below the smallest float32 number.
    (product_step(np.full((1, 4), 1e-20)), np.full(4, 1e-20), 4e-40),
    # It is flushed on its way in.
    (rounding.AddConstant(0.9 * tiny, 1), np.zeros(1), 0.9 * tiny),
    # Squares of 1e-30 are zero: pooling loses all of ‖a‖.
    (rounding.Pool(4, 1), np.full(4, 1e-30), 2e-30),
  ):
    assert bound_of([step], a)[1] >= lost
  with pytest.raises(ValueError, match='no bound'):
    FLOAT32.gamma(2**24)


def shift_step(r, tokens):
  spectral = max(1.0, np.linalg.norm(r, 2)) * ABOVE
  factor = (2 * spectral**2 - 1) * ABOVE
  frobenius = np.linalg.norm(r) * ABOVE
  return rounding.Shift(factor, spectral, frobenius, *r.shape, tokens)


def run_shift(r, a, dtype, *, joined):
  """Returns a + Rᵀ(S − I)R a on a ring of tokens, summed term by term.

  The sums of Rᵀ d start from a if `joined`, which is [tokens, c]; R is [k, c].
  """
  r, a = r.astype(dtype), a.astype(dtype)
  moved = sums(r[None] * a[:, None, :], dtype)
  d = np.roll(moved, 1, axis=0) - moved
  terms = r.T[None] * d[:, None, :]
  if joined:
    return sums(np.concatenate([a[..., None], terms], axis=-1), dtype)
  return a + sums(terms, dtype)


TURNS = np.array([[0.1], [1 / 3], [0.1], [0.7]])
# R and features; in some, all roundings go one way.
SHIFTS = {
  **{f'haar {s}': (s * HAAR[:8], random(6, 64)) for s in (1.0, 1.3, 0.5)},
  'one row': (np.full((1, 1024), 1 / 32), TURNS * np.ones((4, 1024))),
  # R a: u is lost beside 1 a thousand times, on every other token alone.
  'swallowed': (swallowing(1024), np.tile([[1.0], [-1.0]], (2, 1024))),
  'large': (HAAR[:8], 1e6 + random(6, 64)),
  'below normal': (HAAR[:4], 1e-38 * random(6, 64)),
}


def shift_ratio(r, a, *, joined, **fault):
  """Returns the error of float32 over its bound, with a fault in the step."""
  r, a = (np.float64(np.float32(x)) for x in (r, a))
  exact = run_shift(r, a, np.float64, joined=joined)
  found = run_shift(r, a, np.float32, joined=joined)
  norm, error = bound_of([shift_step(r, len(a))._replace(**fault)], a)
  assert np.linalg.norm(exact) <= norm or fault
  return np.linalg.norm(found - exact) / error


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
  first, a = rounding.AddConstant(0.0, 8), np.ones(1)
  _, e = bound_of([first], a)
  r = 1.1 * np.eye(4)
  flipped = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]) * e / 2**0.5
  moved = np.linalg.norm(run_shift(r, flipped, np.float64, joined=True))
  assert moved == pytest.approx(1.42 * e)
  for step, stretched in (
    (product_step(3 * np.eye(4)), 3 * e),
    (shift_step(r, 2), moved),
  ):
    (_, total), (_, alone) = bound_of([first, step], a), bound_of([step], a)
    assert total >= stretched + alone * (1 - 1e-6)
