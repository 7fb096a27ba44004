"""Maps into O(n) and start points on it, Haar in distribution."""

import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipnext_jax.models import parametrizations

MAPS = parametrizations.PARAMETRIZATIONS


def raw_of(name, n=6, seed=0):
  r = MAPS[name].columns(n)
  return np.random.default_rng(seed).normal(size=(n, r))


def mapped(name, v):
  with jax.enable_x64(True):
    return np.asarray(MAPS[name].to_orthogonal(jnp.asarray(v, jnp.float64)))


def defect(w):
  return np.linalg.norm(w.T @ w - np.eye(w.shape[1]), 2)


def ridge(v):
  """What Cholesky adds to VVᵀ: 1e-6 of its mean eigenvalue."""
  return 1e-6 * np.trace(v @ v.T) / len(v)


def allowed(name, v):
  """Products and solves in float64, conditioned up to 1e4 or so.

  Cholesky's W Wᵀ has eigenvalues λ/(λ + ridge) for those of VVᵀ.
  """
  if name != 'cholesky':
    return 1e-11
  least = np.linalg.eigvalsh(v @ v.T)[0]
  return ridge(v) / (least + ridge(v)) * (1 + 1e-6) + 1e-11


@pytest.mark.parametrize('n', [1, 2, 6, 7])
@pytest.mark.parametrize('name', MAPS)
def test_images_are_orthogonal(name, n):
  for seed in range(5):
    v = raw_of(name, n, seed)
    w = mapped(name, v)
    assert w.shape == (n, n)
    assert defect(w) < allowed(name, v)
    assert np.linalg.norm(w, 2) < 1 + 1e-11


def oracle(name, v):
  a = v - v.T if v.shape[0] == v.shape[1] else None
  eye = np.eye(len(v))
  if name == 'cayley':
    return np.linalg.inv(eye - a) @ (eye + a)
  if name == 'exponential':
    return scipy.linalg.expm(a)
  if name == 'cholesky':
    # Gram–Schmidt from the first row on: QR of Vᵀ with positive diagonal, the
    # ridge as further entries of each row.
    n = len(v)
    long = np.concatenate([v, ridge(v) ** 0.5 * np.eye(n)], axis=1)
    q, r = np.linalg.qr(long.T)
    return (q * np.sign(np.diag(r))).T[:, :n]
  return eye - 2 * v @ np.linalg.pinv(v)


def check_definition(name, w, v):
  np.testing.assert_allclose(w, oracle(name, v), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name', MAPS)
def test_each_map_is_its_definition(name):
  v = raw_of(name)
  check_definition(name, mapped(name, v), v)


@pytest.mark.parametrize('name', MAPS)
def test_the_check_of_definitions_rejects_the_transpose_and_a_sign(name):
  v = raw_of(name)
  w = mapped(name, v)
  wrong = -w if name == 'block_reflector' else w.T  # It is symmetric.
  with pytest.raises(AssertionError):
    check_definition(name, wrong, v)


@pytest.mark.parametrize('name', MAPS)
def test_stacks_are_mapped_matrix_by_matrix(name):
  v = np.stack([raw_of(name, seed=s) for s in range(3)])
  each = [mapped(name, one) for one in v]
  np.testing.assert_allclose(mapped(name, v), each, rtol=0, atol=1e-12)


def test_rectangular_images_have_orthonormal_rows_or_columns():
  v = np.random.default_rng(0).normal(size=(3, 8))
  with jax.enable_x64(True):
    wide = np.asarray(parametrizations.cholesky(jnp.asarray(v)))
    tall = np.asarray(parametrizations.cholesky(jnp.asarray(v.T)))
    whole = np.asarray(parametrizations.block_reflector(jnp.asarray(v.T)))
    cut = np.asarray(parametrizations.block_reflector(jnp.asarray(v.T), 5))
  assert defect(wide.T) < 1e-5
  np.testing.assert_allclose(tall, wide.T, rtol=0, atol=1e-14)
  np.testing.assert_allclose(cut, whole[:5], rtol=0, atol=1e-14)
  assert defect(cut.T) < 1e-13


def test_cholesky_never_fails_and_only_shrinks():
  """Rows that coincide: no factor without the ridge, norm <= 1 with it."""
  v = jnp.ones((4, 4))
  w = np.asarray(parametrizations.cholesky(v), np.float64)
  assert np.all(np.isfinite(w))
  assert np.linalg.norm(w, 2) <= 1 + 1e-3  # Float32, conditioned by 1e6.
  assert not np.all(np.isfinite(jnp.linalg.cholesky(v @ v.T - 1e-3)))


@pytest.mark.parametrize('name', MAPS)
def test_gradients_are_those_of_finite_differences(name):
  v, rng = raw_of(name, 4), np.random.default_rng(1)
  direction, weights = rng.normal(size=v.shape), rng.normal(size=(4, 4))

  def objective(v):
    return jnp.sum(MAPS[name].to_orthogonal(v) * weights)

  with jax.enable_x64(True):
    slope = np.sum(np.asarray(jax.grad(objective)(jnp.asarray(v))) * direction)
    step = 1e-6
    ends = [objective(jnp.asarray(v + s * step * direction)) for s in (1, -1)]
  # Central differences: step² and 1e-16/step, times curvatures of about 1e2.
  assert slope == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


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
  w, variables = Holder(name, init).init_with_output(rng)
  leaf = 'R' if name == 'none' else 'R_raw'
  assert list(variables['params']) == [leaf]
  if init == 'identity':
    np.testing.assert_allclose(w, np.eye(6, 8), rtol=0, atol=1e-6)
  else:
    assert np.max(np.abs(w - np.eye(6, 8))) > 0.3
    assert defect(np.asarray(w, np.float64).T) < 1e-5


def test_an_unknown_parametrisation_is_refused(rng):
  with pytest.raises(ValueError, match="'polar'"):
    Holder('polar', 'haar').init(rng)


def test_a_raw_leaf_without_a_map_is_no_silent_pass():
  with pytest.raises(KeyError, match='Q'):
    parametrizations.map_raw({'a': {'Q_raw': 1.0}}, {'R': abs})


@pytest.mark.parametrize('name', MAPS)
def test_a_stack_is_mapped_as_its_matrices_are(name):
  v = jnp.asarray(np.stack([raw_of(name, seed=s) for s in range(3)]), 'float32')
  stack = v.reshape(3, 1, *v.shape[1:])
  weights = jax.random.normal(jax.random.key(0), (6, 6))

  got = MAPS[name].to_orthogonal(stack)
  one = jnp.stack([MAPS[name].to_orthogonal(x) for x in v])
  np.testing.assert_allclose(got[:, 0], one, atol=1e-6)

  def weighed(v):
    out = MAPS[name].to_orthogonal(v)
    return jnp.sum(out * jnp.broadcast_to(weights, out.shape))

  slopes = jax.grad(weighed)(stack)[:, 0]
  np.testing.assert_allclose(
    slopes, jnp.stack([jax.grad(weighed)(x) for x in v]), atol=1e-5
  )


TWO_BATCHES = """
import jax
from lipnext_jax.models import parametrizations
mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
def both(key):
  few, many = (jax.random.normal(key, s) for s in ((4, 128, 128), (20, 96, 96)))
  return parametrizations.cayley(few), parametrizations.cayley(many)
jax.block_until_ready(jax.jit(both, out_shardings=here)(jax.random.key(0)))
"""


def test_eight_virtual_devices_that_map_two_stacks_come_to_an_end():
  """Without `for_each` they wait for ever, every time (jaxlib 0.10.2)."""
  subprocess.run([sys.executable, '-c', TWO_BATCHES], timeout=120, check=True)


# ── Start points ─────────────────────────────────────────────────────────────

N = 4
SAMPLES = 4096


@functools.cache
def draw_haar():
  keys = jax.random.split(jax.random.key(0), SAMPLES)
  draw = jax.jit(jax.vmap(lambda key: parametrizations.haar(key, (N, N))))
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
  q = parametrizations.haar(jax.random.key(n), (n, n))
  assert q.dtype == jnp.float32
  w = np.asarray(q, np.float64)
  defect = np.linalg.norm(w.T @ w - np.eye(n), 2)
  # Newton–Schulz ends on X + X·D/2: entries of X round by 6e-8·n^(-1/2), a
  # random error of spectral norm 2·6e-8, twice in the defect, and D itself
  # carries n/2 random roundings, √n·6e-8.
  assert defect <= 1.2e-7 * (2 + np.sqrt(n) / 2)


def test_haar_depends_on_the_key_alone():
  first, again, other = (
    parametrizations.haar(jax.random.key(k), (3, 3)) for k in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.max(np.abs(first - other)) > 0.1


@pytest.mark.parametrize('name', sorted(parametrizations.ORTHOGONAL))
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_initializers_have_the_shape_and_dtype_asked_for(name, dtype):
  out = jax.eval_shape(
    lambda key: parametrizations.ORTHOGONAL[name](key, (6, 6), dtype),
    jax.random.key(0),
  )
  assert out.shape == (6, 6)
  assert out.dtype == dtype


def test_identity_is_the_identity():
  np.testing.assert_array_equal(
    parametrizations.identity(jax.random.key(0), (5, 5)), np.eye(5)
  )
  assert sorted(parametrizations.ORTHOGONAL) == ['haar', 'identity']
