"""Maps into O(n) and start points on it, Haar in distribution."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax.models import parametrizations

MAPS = parametrizations.PARAMETRIZATIONS


def raw_of(name, n, seed):
  shape = MAPS[name].raw_shape(n, n)
  return np.random.default_rng(seed).normal(size=shape)


def mapped(name, v):
  with jax.enable_x64(True):
    return np.asarray(jax.jit(MAPS[name].to_orthogonal)(v))


def defect(w):
  return np.linalg.norm(w.T @ w - np.eye(w.shape[1]), 2)


def oracle(name, v):
  n = len(v)
  eye = np.eye(n)
  if name == 'cayley':
    return np.linalg.inv(eye - v + v.T) @ (eye + v - v.T)
  if name == 'exponential':
    return scipy.linalg.expm(v - v.T)
  if name == 'block_reflector':
    return eye - 2 * v @ np.linalg.pinv(v)
  # Gram–Schmidt from the first row on: QR of Vᵀ with positive diagonal, the
  # ridge of 1e-6 mean eigenvalues of VVᵀ as further entries of each row.
  ridge = 1e-6 * np.trace(v @ v.T) / n
  q, r = np.linalg.qr(np.concatenate([v.T, ridge**0.5 * eye]))
  return (q * np.sign(np.diag(r)))[:n].T


@pytest.mark.parametrize('n', [1, 2, 6, 7])
@pytest.mark.parametrize('name', MAPS)
def test_each_map_is_its_definition(name, n):
  """The check would see a transpose, or the sign of what is symmetric.

  The definitions are orthogonal, all but Cholesky's with its ridge.
  """
  for seed in range(3):
    v = raw_of(name, n, seed)
    w = mapped(name, v)
    np.testing.assert_allclose(w, oracle(name, v), rtol=0, atol=1e-9)
    assert np.linalg.norm(w, 2) < 1 + 1e-11
    assert name == 'cholesky' or defect(w) < 1e-11
  wrong = -w if name == 'block_reflector' else w.T
  assert n == 1 or np.max(np.abs(wrong - oracle(name, v))) > 1e-6


@pytest.mark.parametrize('name', MAPS)
def test_a_stack_is_mapped_as_its_matrices_are(name):
  stack = np.stack([[raw_of(name, 6, seed)] for seed in range(3)])
  weights = np.random.default_rng(1).normal(size=(6, 6))

  @jax.jit
  def values_and_gradients(v):
    out, pull = jax.vjp(MAPS[name].to_orthogonal, v)
    return out, *pull(jnp.broadcast_to(weights, out.shape))

  with jax.enable_x64(True):
    out, slopes = values_and_gradients(stack)
    for i, v in enumerate(stack[:, 0]):
      one, slope = values_and_gradients(v)
      np.testing.assert_allclose(out[i, 0], one, rtol=0, atol=1e-12)
      np.testing.assert_allclose(slopes[i, 0], slope, rtol=0, atol=1e-9)


def test_on_cpus_no_stack_is_mapped_at_once():
  """Eight virtual devices that do two of them wait for ever (jaxlib 0.10.2)."""
  v = jnp.zeros((4, 3, 3))
  text = jax.jit(parametrizations.cayley).lower(v).compile().as_text()
  solves = re.findall(r'= \((f32\[[\d,]*\]).* custom-call\(', text)
  assert solves
  assert 'f32[4,3,3]' not in solves


def test_rectangular_images_have_orthonormal_rows_or_columns():
  v = np.random.default_rng(0).normal(size=(8, 8))
  wide = mapped('cholesky', v[:3])
  assert defect(wide.T) < 1e-5
  np.testing.assert_allclose(mapped('cholesky', v[:3].T), wide.T, atol=1e-14)
  # So a wide W needs no square V; the ridge is the only difference.
  np.testing.assert_allclose(mapped('cholesky', v)[:3], wide, atol=1e-5)
  assert MAPS['cholesky'].raw_shape(3, 8) == (3, 8)
  with jax.enable_x64(True):
    cut = np.asarray(parametrizations.block_reflector(jnp.asarray(v[:, :3]), 5))
  whole = mapped('block_reflector', v[:, :3])
  np.testing.assert_allclose(cut, whole[:5], rtol=0, atol=1e-14)
  assert defect(cut.T) < 1e-13


def test_cholesky_never_fails_and_only_shrinks():
  """Rows that coincide: no factor without the ridge, norm <= 1 with it."""
  v = jnp.ones((4, 4))
  w = np.asarray(parametrizations.cholesky(v), np.float64)
  assert np.all(np.isfinite(w))
  assert np.linalg.norm(w, 2) <= 1 + 1e-3  # Float32, conditioned by 1e6.
  assert not np.all(np.isfinite(jnp.linalg.cholesky(v @ v.T - 1e-3)))


class Holder(nn.Module):
  name_: str
  init_: str

  @nn.compact
  def __call__(self):
    return parametrizations.orthogonal_param(
      self, 'R', (6, 8), self.init_, self.name_
    )


@pytest.mark.parametrize('name', parametrizations.CHOICES)
@pytest.mark.parametrize('init', ['haar', 'identity'])
def test_parameters_start_as_named(name, init, rng):
  if (name, init) == ('block_reflector', 'identity'):
    with pytest.raises(ValueError, match="cannot start at 'identity'"):
      Holder(name, init).init(rng)
    return
  w, variables = jax.jit(Holder(name, init).init_with_output)(rng)
  leaf = 'R' if name == 'none' else 'R_raw'
  assert list(variables['params']) == [leaf]
  if init == 'identity':
    np.testing.assert_allclose(w, np.eye(6, 8), rtol=0, atol=1e-6)
  else:
    assert np.max(np.abs(w - np.eye(6, 8))) > 0.3
    assert defect(np.asarray(w, np.float64).T) < 1e-5


N = 4
SAMPLES = 4096


def check_haar(q):
  """Moments of the Haar measure on O(n), and its invariance.

  P. Diaconis, S. Evans, "Linear Functionals of Eigenvalues of Random
  Matrices", 2001: the trace has the moments 0, 1, 0, 3 of a standard normal
  variable (exactly, for n >= 4).
  """
  count, n, _ = q.shape
  assert np.max(np.abs(np.swapaxes(q, 1, 2) @ q - np.eye(n))) < 1e-5
  fixed = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))[0]
  for sample in (q, fixed @ q, q @ fixed):
    trace = np.trace(sample, axis1=1, axis2=2)
    for values, mean in (
      (np.linalg.det(sample), 0),  # Both signs, equally.
      *zip((trace, trace**2, trace**3, trace**4), (0, 1, 0, 3), strict=True),
      (sample, 0),
      (sample**2, 1 / n),
      (sample**4, 3 / (n * (n + 2))),
    ):
      # The means of independent values, to six of their standard errors.
      error = 6 * np.std(values, axis=0) / np.sqrt(count) + 1e-9
      assert np.all(np.abs(np.mean(values, axis=0) - mean) <= error)


def planted_samples(haar):
  """LAPACK's signs; rotations alone; near I; permutations; not orthogonal."""
  rng = np.random.default_rng(0)
  g = rng.normal(size=(SAMPLES, N, N))
  yield np.linalg.qr(g)[0]
  first = haar[:, :, :1] * np.linalg.det(haar)[:, None, None]
  yield np.concatenate([first, haar[:, :, 1:]], axis=2)
  a = g - np.swapaxes(g, 1, 2)
  yield np.linalg.solve(np.eye(N) + a, np.eye(N) - a)
  orders = rng.permuted(np.tile(np.arange(N), (SAMPLES, 1)), axis=1)
  yield rng.choice([-1, 1], size=(SAMPLES, N, 1)) * np.eye(N)[orders]
  yield g / np.sqrt(N)


def test_haar_has_the_moments_of_the_haar_measure():
  keys = jax.random.split(jax.random.key(0), SAMPLES)
  draw = jax.jit(jax.vmap(lambda key: parametrizations.haar(key, (N, N))))
  sample = np.asarray(draw(keys), np.float64)
  check_haar(sample)
  for fault in planted_samples(sample):
    with pytest.raises(AssertionError):
      check_haar(fault)


@pytest.mark.parametrize('n', [3, 200])
def test_haar_defect_is_rounding(n):
  q = jax.jit(lambda key: parametrizations.haar(key, (n, n)))(jax.random.key(n))
  assert q.dtype == jnp.float32
  w = np.asarray(q, np.float64)
  # Newton–Schulz ends on X + X·D/2: entries of X round by 6e-8·n^(-1/2), a
  # random error of spectral norm 2·6e-8, twice in the defect, and D itself
  # carries n/2 random roundings, √n·6e-8.
  assert defect(w) <= 1.2e-7 * (2 + np.sqrt(n) / 2)
