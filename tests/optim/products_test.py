"""Tests that products have the given precision, on CPUs, too."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import polar_retract
from lipnext_jax.optim import products

BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32


def operands(n=64):
  keys = jax.random.split(jax.random.key(0))
  return [jax.random.normal(key, (n, n)) for key in keys]


def of_rounded(x, y):
  """Returns the product of operands rounded to bfloat16, in float64."""
  x, y = (
    np.asarray(z).astype(ml_dtypes.bfloat16).astype(float) for z in (x, y)
  )
  return x @ y


@pytest.mark.parametrize('jit', [jax.jit, lambda f: f])
def test_operands_are_bfloat16_and_sums_float32(jit):
  x, y = operands()
  found = jit(functools.partial(products.product, precision=BFLOAT16))(x, y)
  bound = 64 * 2**-24 * np.abs(x) @ np.abs(y)
  assert found.dtype == jnp.float32
  assert np.all(np.abs(found - of_rounded(x, y)) <= bound)
  # The compiler's own preset, on this platform, would not pass.
  plain = jit(functools.partial(jnp.matmul, precision=BFLOAT16))(x, y)
  assert not np.all(np.abs(plain - of_rounded(x, y)) <= bound)


def test_other_precisions_are_left_alone():
  x, y = operands()
  for precision in (None, 'highest', lax.Precision.HIGHEST):
    np.testing.assert_array_equal(
      products.product(x, y, precision), jnp.matmul(x, y, precision=precision)
    )


@pytest.mark.parametrize('precision', [None, 'highest', BFLOAT16], ids=str)
def test_the_product_with_a_transpose_is_as_precise(precision):
  x, y = (z[:40] for z in operands())
  found = products.product(products.transposed(x), y, precision)
  wanted = of_rounded(x.T, y)
  if precision != BFLOAT16:
    wanted = np.asarray(x, float).T @ np.asarray(y, float)
  bound = 40 * 2**-24 * np.abs(x).T @ np.abs(y)
  assert np.all(np.abs(found - wanted) <= bound)
  assert not np.all(np.abs(found.T - wanted) <= bound)


def test_no_product_of_the_cpu_reads_by_columns():
  """The slow product contracts the first axes of both operands."""
  x, y = operands()

  def contracts_columns(fn):
    text = jax.jit(lambda x, y: fn(x, y)).lower(x, y).compile().as_text()
    return 'lhs_contracting_dims={0}' in text

  assert not contracts_columns(lambda x, y: products.transposed(x) @ y)
  assert contracts_columns(lambda x, y: x.T @ y)


def test_the_manifold_step_has_it_and_retraction_repairs_it():
  """docs/optimizer.md has the drift for real sizes."""
  x = polar_retract(operands()[0])

  def defect(precision):
    tx = orthogonal(
      optax.adam(3e-3), precision=precision, retraction_period=None
    )
    carry = x, tx.init(x)

    def body(t, carry):
      x, state = carry
      g = jax.random.normal(jax.random.key(t), x.shape)
      updates, state = tx.update(g, state, x)
      return optax.apply_updates(x, updates), state

    return jax.jit(lambda carry: lax.fori_loop(0, 50, body, carry)[0])(carry)

  low, high = defect(BFLOAT16), defect(lax.Precision.HIGHEST)
  assert orthogonality_error(low) > 10 * orthogonality_error(high)
  assert orthogonality_error(polar_retract(low)) < 1e-5
