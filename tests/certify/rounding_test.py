"""The rounding bound: never below what an arithmetic does, nor far above it.

Float32 is the arithmetic under test and float64 the exact one: 29 bits apart,
so that what float64 itself rounds (2⁻⁵³ against 2⁻²⁴) does not show.
"""

import numpy as np
import pytest

from lipnext_jax.certify import rounding

FLOAT32 = rounding.FLOAT32
UNIT = FLOAT32.unit


def float32_product(w, a, order):
  """W a with every sum taken in float32, term by term, in the given order."""
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
  """Matrices and vectors, some of which make every rounding go one way."""
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


@pytest.mark.parametrize(('w', 'a'), [p[1:] for p in products()])
@pytest.mark.parametrize('seed', [None, 0, 1])
def test_a_product_errs_by_less_than_its_bound_in_any_order(w, a, seed):
  order = np.arange(len(a))
  if seed is not None:
    order = np.random.default_rng(seed).permutation(order)
  w, a = np.float32(w), np.float32(a)
  computed = float32_product(w, a, order)
  exact = np.float64(w) @ np.float64(a)
  norm, error = bound_of([product_step(w)], np.float64(a))
  assert np.linalg.norm(np.float64(computed) - exact) <= error
  assert np.linalg.norm(exact) <= norm


def test_the_bound_of_a_product_is_attained_up_to_a_factor():
  """All roundings of 'swallowed' lose u: (n − 1)·u of γ_n·‖w‖·‖a‖."""
  _, w, a = next(p for p in products() if p[0] == 'swallowed')
  lost = np.abs(float32_product(w, a, np.arange(512)) - w @ a).item()
  assert lost == pytest.approx(511 * UNIT)
  # In the norms of this very sum the bound is γ_n |w|·|a|, within 1 %.
  assert FLOAT32.gamma(512) * np.abs(w) @ np.abs(a) == pytest.approx(
    lost, rel=0.01
  )


def chain_and_run(rng):
  """Two products with constants, then a pool: its steps, and its float32 run.

  Returns steps, and a function a → (computed, exact) features.
  """
  tokens, n = 6, 16
  first = 1.5 * np.linalg.qr(rng.normal(size=(n, n)))[0]
  second = 2.0 * np.linalg.qr(rng.normal(size=(n, n)))[0]
  first, second = np.float32(first), np.float32(second)
  constant = np.float32(3 * rng.normal(size=n))

  def product(w):
    return product_step(w)._replace(size=tokens * n)

  steps = [
    product(first),
    rounding.AddConstant(
      float(np.linalg.norm(np.float64(constant))) * tokens**0.5 * (1 + 1e-12),
      tokens * n,
    ),
    product(second),
    rounding.Pool(tokens, n),
  ]

  def run(a, dtype):
    a = a.astype(dtype)
    for w, c in ((first, constant), (second, None)):
      terms = a[:, None, :] * w[None].astype(dtype)
      a = np.add.accumulate(terms, axis=-1, dtype=dtype)[..., -1]
      if c is not None:
        a = a + c[None].astype(dtype)
    squares = np.add.accumulate(a * a, axis=0, dtype=dtype)[-1]
    return np.sqrt(squares)

  def both(a):
    return run(a, np.float32).astype(np.float64), run(a, np.float64)

  return steps, both


def ratios(steps, both, rng, trials=50):
  """The largest error and norm over their bounds."""
  worst_error = worst_norm = 0.0
  for _ in range(trials):
    a = np.float32(rng.normal(size=(6, 16)))
    computed, exact = both(a)
    norm, error = bound_of(steps, np.float64(a))
    worst_error = max(worst_error, np.linalg.norm(computed - exact) / error)
    worst_norm = max(worst_norm, np.linalg.norm(exact) / norm)
  return worst_error, worst_norm


def test_a_chain_errs_by_less_than_its_bound_and_not_far_less():
  rng = np.random.default_rng(1)
  steps, both = chain_and_run(rng)
  error, norm = ratios(steps, both, rng)
  # The bound is for the worst signs and for ‖W‖_F: random ones reach 1/n of it.
  assert 0.005 < error < 1
  assert 0.5 < norm < 1


def without_products(steps):
  return [
    s._replace(frobenius=0.0) if isinstance(s, rounding.Product) else s
    for s in steps
  ]


@pytest.mark.parametrize(
  ('fault', 'caught'),
  [
    (lambda steps: [s for s in steps if not hasattr(s, 'norm')], 'norm'),
    (lambda steps: [steps[0]._replace(spectral=0.5), *steps[1:]], 'norm'),
    (without_products, 'error'),
  ],
)
def test_a_chain_with_a_part_left_out_is_no_bound(fault, caught):
  rng = np.random.default_rng(1)
  steps, both = chain_and_run(rng)
  steps = fault(steps)
  if caught == 'error':  # Only products are left to round.
    steps = [s for s in steps if isinstance(s, rounding.Product)]
  error, norm = ratios(steps, both, rng)
  assert {'error': error, 'norm': norm}[caught] > 1


def test_an_error_that_came_in_is_amplified():
  steps = [product_step(np.eye(4)), product_step(3 * np.eye(4))]
  one = rounding.propagate(steps[:1], np.array([1.0])).error[0]
  two = rounding.propagate(steps, np.array([1.0])).error[0]
  # On top of what the second step rounds by itself, of an exact input.
  alone = rounding.propagate(steps[1:], np.array([1.0])).error[0]
  assert two > 3 * one + alone * (1 - 1e-6)


def test_adding_a_constant_and_pooling_round():
  constant = rounding.AddConstant(2.0, 1)
  a = np.float32(1.0) + np.float32(UNIT) * 0
  lost = abs(float(np.float32(a + np.float32(2 + 2**-22))) - (3 + 2**-22))
  _, error = bound_of([constant], np.array([1.0]))
  assert lost <= error
  assert error == pytest.approx(3 * UNIT, rel=1e-6)
  _, error = bound_of([rounding.Pool(1000, 1)], np.array([1.0]))
  squares = np.full(1000, np.float32(1000**-0.5)) ** 2
  pooled = np.sqrt(np.add.accumulate(squares, dtype=np.float32)[-1])
  assert abs(float(pooled) - 1) <= error


def test_a_sum_that_starts_from_the_bias_is_covered():
  """acc = b; acc += w_i a_i: what a GEMM with the bias as its C may do."""
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
  """1e-20 squared is below the smallest float32: all of the result is lost."""
  a = np.full(4, 1e-20)
  _, error = bound_of([product_step(np.full((1, 4), 1e-20))], a)
  assert error >= 4e-40
  tiny = float(np.finfo(np.float32).tiny)
  constant = rounding.AddConstant(0.9 * tiny, 1)  # Flushed on its way in.
  _, error = bound_of([constant], np.zeros(1))
  assert error >= 0.9 * tiny


def test_pooling_what_underflows_is_covered():
  """Squares of 1e-30 are zero in float32: all of ‖a‖ is lost."""
  a = np.full(4, 1e-30)
  _, error = bound_of([rounding.Pool(4, 1)], a)
  assert error >= np.linalg.norm(a)


def test_lipschitz_is_the_product_of_the_spectral_bounds():
  steps = [product_step(2 * np.eye(3)), rounding.Pool(3, 3)] * 2
  assert 4 <= rounding.lipschitz(steps) < 4 * (1 + 1e-11)
  assert rounding.lipschitz([]) == 1


def test_too_many_roundings_are_refused():
  with pytest.raises(ValueError, match='no bound'):
    FLOAT32.gamma(2**24)


def test_the_bounds_are_per_image_and_grow_with_the_norm():
  steps, _ = chain_and_run(np.random.default_rng(0))
  small, large = rounding.propagate(steps, np.array([1.0, 2.0])).error
  assert 0 < small < large
