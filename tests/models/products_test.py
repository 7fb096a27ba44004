"""Products of token rows: the gradients of plain ones, in wider dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import products

HIGHEST = products.Numerics(jnp.float64, 'highest')


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize('wide', [True, False])
def test_mix_and_its_gradients_are_those_of_plain_products(wide):
  """Float64, random shapes that are all different."""
  with jax.enable_x64(True):
    y, d, r, m = draw((7, 5), (7, 3), (3, 5), (6, 5))
    g = draw((7, 6))[0]

    def plain(y, d, r, m):
      return (y + d @ r) @ m.T

    out, pull = jax.vjp(lambda *a: products.mix(HIGHEST, *a), y, d, r, m)
    expected, plain_pull = jax.vjp(plain, y, d, r, m)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    cotangents = pull(g) if wide else pull(2 * g)
    for a, b in zip(cotangents, plain_pull(g), strict=True):
      if wide:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
      else:  # The check tells another cotangent.
        assert np.abs(a - b).max() > 0.1


def test_product_and_its_gradients_are_plain_ones():
  with jax.enable_x64(True):
    x, w, g = draw((7, 5), (6, 5), (7, 6))
    out, pull = jax.vjp(lambda *a: products.product(HIGHEST, *a), x, w)
    np.testing.assert_allclose(out, x @ w.T, rtol=0, atol=1e-13)
    for a, b in zip(pull(g), (g @ w, g.T @ x), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def narrow(w):
  tokens = jnp.ones((257, 1), jnp.bfloat16)
  y = jax.lax.dot_general(
    tokens, w.astype(jnp.bfloat16), (((1,), (1,)), ((), ()))
  )
  return y.astype(jnp.float32).sum()


def by_product(w):
  numerics = products.Numerics(jnp.bfloat16)
  tokens = jnp.ones((257, 1), jnp.bfloat16)
  return products.product(numerics, tokens, w).astype(jnp.float32).sum()


def by_mix(w):
  numerics = products.Numerics(jnp.bfloat16)
  tokens = jnp.ones((257, 1), jnp.bfloat16)
  none = jnp.zeros((257, 1), jnp.bfloat16)
  v = products.mix(numerics, tokens, none, jnp.ones((1, 1)), w)
  return v.astype(jnp.float32).sum()


def test_gradients_of_weights_are_not_rounded_before_they_are_summed():
  """257 has nine bits, one more than bfloat16."""
  w = jnp.ones((1, 1), jnp.float32)
  assert jax.grad(by_product)(w).item() == 257
  assert jax.grad(by_mix)(w).item() == 257
  assert jax.grad(narrow)(w).item() == 256
