"""Maps into O(n): orthogonal, as defined, differentiable, and named rightly."""

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
