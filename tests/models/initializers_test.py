"""Start points: Haar in distribution, orthogonal to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import initializers

N = 4
SAMPLES = 4096


@functools.cache
def draw_haar():
  keys = jax.random.split(jax.random.key(0), SAMPLES)
  draw = jax.jit(jax.vmap(lambda key: initializers.haar(key, (N, N))))
  return np.asarray(draw(keys), np.float64)


def check_mean(values, expected, what):
  """The mean of independent values, to six of its standard errors."""
  error = 6 * np.std(values) / np.sqrt(len(values)) + 1e-9
  assert abs(np.mean(values) - expected) <= error, what


def check_haar(q):
  """Moments of the Haar measure on O(n), and its invariance.

  P. Diaconis, S. Evans, "Linear Functionals of Eigenvalues of Random
  Matrices", 2001: the trace has the moments 0, 1, 0, 3 of a standard normal
  variable (exactly, for n >= 4).
  """
  n = q.shape[-1]
  gram = np.swapaxes(q, 1, 2) @ q
  assert np.max(np.abs(gram - np.eye(n))) < 1e-5, 'orthogonal'
  check_mean(np.linalg.det(q), 0, 'determinants of both signs, equally')
  fixed = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))[0]
  for sample, which in ((q, 'Q'), (fixed @ q, 'AQ'), (q @ fixed, 'QA')):
    trace = np.trace(sample, axis1=1, axis2=2)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
      check_mean(trace**power, moment, f'trace of {which}, {power}')
    for i, j in np.ndindex(n, n):
      entry = sample[:, i, j]
      check_mean(entry, 0, f'mean of {which}, {(i, j)}')
      check_mean(entry**2, 1 / n, f'variance of {which}, {(i, j)}')
      check_mean(entry**4, 3 / (n * (n + 2)), f'kurtosis of {which}, {(i, j)}')


def test_haar_has_the_moments_of_the_haar_measure():
  check_haar(draw_haar())


def gaussian(seed=0):
  return np.random.default_rng(seed).normal(size=(SAMPLES, N, N))


def qr_without_signs():
  """Planted: LAPACK's signs, which fix the determinant and the diagonal."""
  return np.linalg.qr(gaussian())[0]


def rotations_only():
  """Planted: SO(n) in place of O(n)."""
  q = draw_haar().copy()
  q[:, :, 0] *= np.linalg.det(q)[:, None]
  return q


def near_the_identity():
  """Planted: the Cayley transform of a Gaussian skew matrix."""
  a = gaussian()
  a = a - np.swapaxes(a, 1, 2)
  return np.linalg.solve(np.eye(N) + a, np.eye(N) - a)


def permutations():
  """Planted: signed permutations; orthogonal, mean and variance right."""
  rng = np.random.default_rng(0)
  eye = np.eye(N)
  return np.stack(
    [
      rng.choice([-1, 1], size=(N, 1)) * eye[rng.permutation(N)]
      for _ in range(SAMPLES)
    ]
  )


def normalised_gaussian():
  """Planted: entries of the right size, columns that are not orthogonal."""
  return gaussian() / np.sqrt(N)


@pytest.mark.parametrize(
  'fault',
  [
    qr_without_signs,
    rotations_only,
    near_the_identity,
    permutations,
    normalised_gaussian,
  ],
)
def test_haar_check_rejects(fault):
  with pytest.raises(AssertionError):
    check_haar(fault())


@pytest.mark.parametrize('n', [3, 200])
def test_haar_defect_is_rounding(n):
  q = initializers.haar(jax.random.key(n), (n, n))
  assert q.dtype == jnp.float32
  w = np.asarray(q, np.float64)
  defect = np.linalg.norm(w.T @ w - np.eye(n), 2)
  # Newton–Schulz ends on X + X·D/2: entries of X round by 6e-8·n^(-1/2), a
  # random error of spectral norm 2·6e-8, twice in the defect, and D itself
  # carries n/2 random roundings, √n·6e-8.
  assert defect <= 1.2e-7 * (2 + np.sqrt(n) / 2)


def test_haar_depends_on_the_key_alone():
  first, again, other = (
    initializers.haar(jax.random.key(k), (3, 3)) for k in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.max(np.abs(first - other)) > 0.1


@pytest.mark.parametrize('name', sorted(initializers.ORTHOGONAL))
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_initializers_have_the_shape_and_dtype_asked_for(name, dtype):
  out = jax.eval_shape(
    lambda key: initializers.ORTHOGONAL[name](key, (6, 6), dtype),
    jax.random.key(0),
  )
  assert out.shape == (6, 6)
  assert out.dtype == dtype


def test_identity_is_the_identity():
  np.testing.assert_array_equal(
    initializers.identity(jax.random.key(0), (5, 5)), np.eye(5)
  )
  assert sorted(initializers.ORTHOGONAL) == ['haar', 'identity']
