"""The normalised head: unit rows, and the slopes the certificate relies on."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import head
from lipnext_jax.models import head_kernel

K, C = 5, 7


def variables(scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'params': {
      'kernel': scale * rng.normal(size=(K, C)),
      'bias': rng.normal(size=K),
    }
  }


compiled = jax.jit(head.NormalizedHead(K).apply)


def apply(params, z):
  """The head in float64, as a NumPy array."""
  with jax.enable_x64(True):
    return np.asarray(compiled(params, z))


def check_head(fn):
  """f_j(z) = w_j·z/‖w_j‖ + b_j, and |Δ(f_i − f_j)| <= ‖w_i − w_j‖·‖Δz‖."""
  params = variables(scale=3.0)
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(2, 20, C))
  w, bias = params['params']['kernel'], params['params']['bias']
  rows = [row / math.sqrt(sum(row**2)) for row in w]
  f = fn(params, x)
  # Seven products in float64.
  want = np.stack([x @ row for row in rows], axis=1) + bias
  np.testing.assert_allclose(f, want, rtol=1e-13, atol=1e-13)
  for i, j in itertools.combinations(range(K), 2):
    slope = np.linalg.norm(rows[i] - rows[j])
    difference = np.eye(K)[i] - np.eye(K)[j]
    moved = np.abs((f - fn(params, y)) @ difference)
    assert np.all(moved <= slope * np.linalg.norm(x - y, axis=1) + 1e-12)
    # Attained along w_i − w_j.
    step = (rows[i] - rows[j]) / slope
    gain = (fn(params, x + step) - f) @ difference
    np.testing.assert_allclose(gain, slope, rtol=1e-12)


def test_head_is_its_definition_with_tight_margin_slopes():
  check_head(apply)
  for axis in (None, 0):  # Planted: normalised as a whole, and by columns.

    def fault(params, z, axis=axis):
      w, bias = params['params']['kernel'], params['params']['bias']
      return z @ (w / np.linalg.norm(w, axis=axis)).T + bias

    with pytest.raises(AssertionError):
      check_head(fault)


@pytest.mark.parametrize('scale', [1e-12, 1.0, 1e12])
def test_head_kernel_has_unit_rows_in_float32(scale):
  """The same as in the forward pass: one division, no other normalisation."""
  kernel = jnp.asarray(variables(scale)['params']['kernel'], jnp.float32)
  rows = head_kernel({'params': {'head': {'kernel': kernel}}})
  assert rows.dtype == jnp.float32
  # A sum of 7, a root and a division: about 6 roundings of 6e-8.
  norms = np.linalg.norm(np.asarray(rows, np.float64), axis=1)
  np.testing.assert_allclose(norms, 1, atol=4e-7)
  params = {'params': {'kernel': kernel, 'bias': jnp.zeros(K)}}
  logits = head.NormalizedHead(K).apply(params, jnp.eye(C))
  np.testing.assert_allclose(logits.T, rows, rtol=2e-7)
  rows = head.unit_rows(kernel.at[1].set(0))  # A zero row shows.
  np.testing.assert_array_equal(np.isnan(rows[:, 0]), np.arange(K) == 1)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_logits_are_float32_or_wider_and_parameters_float32(dtype):
  with jax.enable_x64(True):
    z = jax.ShapeDtypeStruct((2, C), dtype)
    model = head.NormalizedHead(K)
    logits, params = jax.eval_shape(
      lambda z: model.init_with_output(jax.random.key(0), z), z
    )
  assert logits.dtype == jnp.promote_types(dtype, jnp.float32)
  assert {a.dtype.name for a in jax.tree.leaves(params)} == {'float32'}


def test_variables_without_a_head_raise():
  for tree in ({}, {'params': {}}, {'params': {'head': 1}}):
    with pytest.raises(ValueError, match='head_kernel needs variables'):
      head_kernel(tree)
