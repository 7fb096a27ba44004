"""Tests the Lipschitz bound, the product over all operators."""

from fractions import Fraction
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.certify import bound as bound_lib
from lipnext_jax.certify import convolution
from lipnext_jax.certify import norms
from lipnext_jax.models import block
from lipnext_jax.models import products
from tests import networks

# LAPACK's singular values are right to a small multiple of n·u·‖W‖: 1e-13 for
# n <= 200.
SVD_ERROR = 1e-13


def qr(n, seed):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


MODEL = models.LipNeXt(4, depth=3, width=8, patch_size=2)


def exact_product(params):
  """Returns ‖Q‖ Π ‖M‖ (2·max(1, ‖R‖²) − 1), with norms from LAPACK."""
  q, r, m = (
    np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)[..., 0]
    for w in (params['stem']['Q'], params['blocks']['R'], params['blocks']['M'])
  )
  return float(q * np.prod(m) * np.prod(2 * np.maximum(1, r) ** 2 - 1))


@pytest.mark.parametrize('scale', [1.0, 1.3])
def test_bound_is_the_product_over_all_matrices(scale):
  params = networks.draw(MODEL, (4, 4, 1))
  params['blocks']['R'] *= np.float32(scale)
  params['blocks']['M'][1] *= np.float32(scale)
  truth = exact_product(params)
  b = certify.lipschitz_bound({'params': params})
  assert truth * (1 - SVD_ERROR) <= b
  # Float32 rounding leaves all 7 matrices 1 + 1e-6 at most. Of the 4 scaled
  # ones ‖W‖² is overestimated by 2·8^(1/16)·(s² − 1)·(8^(1/8192) − 1) at most,
  # and a factor 2g − 1 >= g by twice as much.
  excess = 1.2e-3 * (scale**2 - 1)
  assert b <= truth * (1 + 3e-5) * (1 + excess) ** 4
  on_device = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
  assert b == certify.lipschitz_bound(on_device)
  bounds = certify.lipschitz_bounds(params)
  counts = {name: len(layers) for name, layers in bounds.items()}
  assert counts == {'stem/Q': 1, 'blocks/R': 3, 'blocks/M': 3}
  assert certify.bound_product(bounds) == b
  stretched = [m > (1 + scale) / 2 for m in bounds['blocks/M']]
  assert scale == 1 or stretched == [False, True, False]


def test_products_and_powers_round_up():
  # 8 and 16 factors, exactly: the float is never below the rational.
  for depth, seed in ((4, 0), (4, 1), (8, 2)):
    stack = np.stack([1.1 * qr(5, 20 * seed + i) for i in range(depth)])
    params = {'R': stack, 'M': stack.transpose(0, 2, 1)}
    bounds = certify.lipschitz_bounds(params)
    single = [norms.spectral_norm_bound(w) for w in stack]
    for b, one in zip(bounds['R'], single, strict=True):
      assert Fraction(b) >= 2 * Fraction(one) ** 2 - 1
    exact = math.prod(Fraction(b) for layer in bounds.values() for b in layer)
    total = certify.lipschitz_bound(params)
    assert exact <= Fraction(total) <= exact * (1 + Fraction(1, 10**13))


CHANNELS = 8
GRIDS = [(1, 1), (2, 2), (3, 3), (4, 2)]  # c·h·w <= 72: dense matrices.


@functools.partial(jax.jit, static_argnums=0)
def images_of_basis(spec, weights):
  """Returns the block's images of all basis vectors: its matrix, by rows."""
  n = math.prod(spec.grid) * CHANNELS
  u = jnp.eye(n).reshape(-1, CHANNELS)
  return block.apply_block(spec, weights, u).reshape(n, n)


def block_norm(r, m, grid, padding):
  """Returns the Lipschitz constant of a block without σ, from its matrix."""
  spec = block.BlockSpec(
    grid, len(r) / 4 / CHANNELS, padding, 'beta_abs', beta=0.0, position=True,
    r_init='haar', m_init='haar', parametrization='none',
    numerics=products.Numerics(jnp.float64, 'highest'),
  )  # fmt: skip
  with jax.enable_x64(True):
    weights = block.Weights(r, m, np.zeros(CHANNELS), np.zeros((*grid, 1)))
    return np.linalg.norm(np.asarray(images_of_basis(spec, weights)), 2)


def off_the_manifold(epsilon, rows):
  """Returns {name: (R, M)} with R of some rows."""
  r, m = qr(CHANNELS, 1)[:rows], qr(CHANNELS, 2)
  first_row = np.where(np.arange(rows) == 0, 1 + epsilon, 1.0)[:, None]
  noise = epsilon / 4 * np.random.default_rng(0).normal(size=m.shape)
  return {
    'long': ((1 + epsilon) ** 0.5 * r, m),
    'short': ((1 - epsilon) ** 0.5 * r, m),
    'one row': (first_row * r, m),
    'M': (r, (1 + epsilon) ** 0.5 * m),
    'random': (r + noise[:rows], m + noise),
  }


def check_block(padding, ratio):
  """Compares the bound with the searched constant; returns both per case."""
  pairs = {}
  for grid, epsilon in itertools.product(GRIDS, (1e-3, 0.1)):
    cases = off_the_manifold(epsilon, int(4 * ratio * CHANNELS))
    for name, (r, m) in cases.items():
      found = block_norm(r, m, grid, padding)
      bound = certify.lipschitz_bound({'R': r, 'M': m})
      assert found <= bound * (1 + SVD_ERROR), f'{grid} {name} {epsilon}'
      pairs[grid, name, epsilon] = found, bound
  return pairs


@pytest.mark.parametrize('ratio', [1 / 8, 1 / 4])
@pytest.mark.parametrize('padding', ['circular', 'zero'])
def test_a_block_is_never_steeper_than_its_factor(padding, ratio):
  pairs = check_block(padding, ratio)
  for (grid, name, epsilon), (found, bound) in pairs.items():
    # A circular shift over an even side has the eigenvalue −1: tight there.
    if name == 'long' and padding == 'circular' and grid[0] % 2 == 0:
      assert bound < 1.001 * found
    # Rows that are too short cost what the bound on their norm is off: twice
    # 8^(1/8192) − 1 of a defect that 8^(1/16) overestimates.
    if name == 'short':
      assert bound < 1 + 4 * 2.6e-4 * 1.14 * epsilon + 1e-13


@pytest.mark.parametrize(
  'factor',
  [
    lambda kind, norm: norm**2 if kind == 'R' else norm,  # 1 + δ, for long R.
    lambda kind, norm: norm,
    lambda kind, norm: 1.0 if kind == 'R' else norm,
    lambda kind, norm: 2 * norm**2 - 1 if kind == 'R' else 1.0,
  ],
)
def test_the_check_of_blocks_rejects(factor, monkeypatch):
  monkeypatch.setattr(bound_lib, 'operator_factor', factor)
  with pytest.raises(AssertionError, match=r'\(\d, \d\)'):
    check_block('circular', 1 / 4)


def test_a_user_brings_labels():
  params = {'layer': 1.5 * np.eye(3), 'scale': np.ones(3)}
  labels = {'layer': 'orthogonal', 'scale': 'euclidean'}
  assert 1.5 <= certify.lipschitz_bound(params, lambda _: labels) < 1.501


POSITION = {'stem': {'pos': np.zeros((1, 1, 1))}}
REFUSED = [
  ({'M': np.stack([np.eye(2), np.diag([1.0, np.nan])])}, 'not finite'),
  (POSITION | {'conv_zero': np.full((1, 1, 1, 1), np.inf)}, 'not finite'),
  (POSITION | {'conv_circular': np.full((1, 1, 1, 1), np.nan)}, 'not finite'),
  ({'stem': {'conv_zero': np.ones((1, 1, 1, 1))}}, 'no stem/pos'),
  ({'head': {'kernel': np.eye(2)}}, 'no orthogonal parameter'),
  # A kernel that is no head.
  ({'R': np.eye(2), 'my_head': {'kernel': 100.0}}, 'matches no rule'),
  ({'R': np.eye(2), 'M_raw': np.eye(2)}, 'M_raw is mapped'),
  ({'R': np.ones(3)}, 'needs a matrix'),
  # Numbers that float64 does not hold.
  *(
    (POSITION | {name: leaf}, 'float64 does not hold')
    for name, leaf in (
      ('M', np.array([[1j, 0], [0, 5j]])),
      ('M', np.array([[2**53 + 1]])),
      ('conv_zero', np.ones((1, 1, 1, 1)) * 1j),
      ('spectrum', np.ones((1, 1, 2, 1, 1)) * 1j),
    )
  ),
]


@pytest.mark.parametrize(('params', 'problem'), REFUSED)
def test_what_cannot_be_bounded_is_refused(params, problem):
  with pytest.raises(ValueError, match=problem):
    certify.lipschitz_bound(params)


@pytest.mark.parametrize('kind', ['conv_circular', 'conv_zero'])
def test_convolutions_are_bounded_on_the_grid_of_the_model(kind):
  kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 2))
  stem = {kind: kernel, 'pos': np.zeros((4, 5, 1))}
  found = certify.lipschitz_bounds({'params': {'stem': stem, 'Q': np.eye(2)}})
  bound = convolution.BOUNDS[kind][1](kernel, (4, 5))
  assert found == {
    'params/Q': [pytest.approx(1)],
    f'params/stem/{kind}': [bound],
  }
