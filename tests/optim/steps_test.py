"""One matrix in a step, against NumPy and SciPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax.optim import algebra
from lipnext_jax.optim import exponential
from lipnext_jax.optim import steps

SHAPES = [(5, 5), (3, 6), (6, 3), (1, 4)]
HIGHEST = jax.lax.Precision.HIGHEST


@pytest.fixture(autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def draw(shape, seed=0):
  """X with orthonormal rows or columns, and a gradient."""
  rng = np.random.default_rng(seed)
  square = np.linalg.qr(rng.normal(size=(max(shape), max(shape))))[0]
  return square[: shape[0], : shape[1]], rng.normal(size=shape)


def derivative(x, g, a):
  """Of ⟨G, X·exp(tA)⟩ (of ⟨G, exp(−tA)·X⟩ for tall X) at t = 0."""
  moved = x @ a if x.shape[0] <= x.shape[1] else -a @ x
  return np.sum(g * moved)


def check_tangent(tangent, shape, rows=None):
  """Raises unless ⟨XᵀG, A⟩ is the derivative along any skew A."""
  x, g = draw(shape)
  g = g[:rows]
  got = np.asarray(tangent(x, g))
  padded = np.concatenate([g, np.zeros((len(x) - len(g), x.shape[1]))])
  for seed in range(5):
    b = np.random.default_rng(seed).normal(size=got.shape)
    a = b - b.T
    want = derivative(x, padded, a)
    np.testing.assert_allclose(np.sum(got * a), want, rtol=1e-12, atol=1e-12)


tangent = functools.partial(steps.tangent, precision=HIGHEST)


@pytest.mark.parametrize('shape', SHAPES)
def test_the_tangent_is_the_derivative_along_the_manifold(shape):
  check_tangent(tangent, shape)


@pytest.mark.parametrize(('shape', 'rows'), [((5, 5), 2), ((3, 6), 1)])
def test_rows_without_a_gradient_need_not_be_there(shape, rows):
  check_tangent(tangent, shape, rows)


@pytest.mark.parametrize(
  'fault',
  [
    lambda x, g: tangent(x, g).T,
    lambda x, g: x @ g.T,
    lambda x, g: 1.001 * tangent(x, g),
    lambda x, g: tangent(x.astype(jnp.bfloat16).astype(float), g),
  ],
)
def test_the_derivative_rejects(fault):
  with pytest.raises(AssertionError):
    check_tangent(fault, (5, 5))


def exact(a):
  return exponential.fast_expm1(a, thresholds=(0, 0, 0))


def turned(x, a):
  """X·exp(A), or exp(A)ᵀ·X for tall X."""
  e = scipy.linalg.expm(a)
  return x @ e if x.shape[0] <= x.shape[1] else e.T @ x


def turn(kind):
  return functools.partial(
    steps.turn,
    load=algebra.ALGEBRAS[kind].load,
    expm1=exact,
    precision=HIGHEST,
  )


@pytest.mark.parametrize('kind', algebra.ALGEBRAS)
@pytest.mark.parametrize('shape', SHAPES)
def test_a_plain_step_is_the_exponential(shape, kind):
  x, _ = draw(shape)
  n = max(shape)
  a = np.asarray(algebra.skew(np.random.default_rng(1).normal(size=(n, n))))
  delta = algebra.ALGEBRAS[kind].store(a)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13)
  close(x + turn(kind)(x, delta), turned(x, a))
  if n > 1:
    with pytest.raises(AssertionError):
      close(x + turn(kind)(x, -delta), turned(x, a))


def polar(x):
  u, _, v = jnp.linalg.svd(x, full_matrices=False)
  return u @ v


@pytest.mark.parametrize('sync', [False, True])
@pytest.mark.parametrize('due', [None, False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_special_step_syncs_and_retracts_as_told(shape, due, sync):
  n = max(shape)
  x, slow = (1.01 * draw(shape, seed)[0] for seed in (1, 2))
  delta, total = (
    np.asarray(algebra.skew(np.random.default_rng(s).normal(size=(n, n))))
    for s in (3, 4)
  )
  flags = steps.Flags(
    retract=None if due is None else jnp.array(due),
    sync=jnp.array(sync),
    alpha=0.3,
  )
  got = steps.special(
    flags, x, delta, slow, total, turn=turn('whole'), retract=polar
  )
  want = turned(slow, 0.3 * total) if sync else turned(x, delta)
  want_slow = want if sync else slow
  if due:
    want, want_slow = polar(want), polar(want_slow)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13)
  close(x + got.update, want)
  close(got.slow, want_slow)
  close(got.total, 0 * total if sync else total)


@pytest.mark.parametrize('due', [False, True])
def test_without_lookahead_there_is_only_an_update(due):
  x, delta = 1.01 * draw((4, 4))[0], np.zeros((4, 4))
  flags = steps.Flags(retract=jnp.array(due), sync=None, alpha=0.5)
  got = steps.special(flags, x, delta, turn=turn('whole'), retract=polar)
  assert got.slow is None
  assert got.total is None
  want = polar(x) if due else x
  np.testing.assert_allclose(x + got.update, want, rtol=0, atol=1e-13)
