"""The Lipschitz bound: the product over all that a backbone applies."""

from fractions import Fraction
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax.certify import norms

# LAPACK's singular values are right to a small multiple of n·u·‖W‖: 1e-13 for
# n <= 200.
SVD_ERROR = 1e-13


def qr(m, n, seed=0):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(max(m, n), n)))[0]
  return q[:m]


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
    single = [norms.spectral_norm_bound(w) for w in stack]
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


def test_float32_above_is_above():
  for value in (1.0, 1 + 1e-12, 1 + 6e-6, 1.5, np.pi):
    above = certify.float32_above(value)
    assert above.dtype == np.float32
    assert value < float(above) < value * (1 + 3e-7)


def test_a_leaf_that_is_mapped_before_it_is_applied_raises():
  with pytest.raises(ValueError, match='M_raw is mapped'):
    certify.lipschitz_bound({'R': np.eye(2), 'M_raw': np.eye(2)})


def test_convolutions_count_and_need_their_grid():
  stretch = np.zeros((3, 3, 2, 2))
  stretch[1, 1] = 3 * np.eye(2)
  params = {
    'stem': {'conv_zero': stretch, 'pos': np.zeros((4, 4, 1))},
    'neck': {'Q': np.eye(2)},
  }
  assert certify.lipschitz_bound(params) == pytest.approx(3, rel=1e-3)
  assert certify.lipschitz_bounds({'params': params}).keys() == {
    'params/stem/conv_zero',
    'params/neck/Q',
  }
  del params['stem']['pos']
  with pytest.raises(ValueError, match='no stem/pos'):
    certify.lipschitz_bound(params)
