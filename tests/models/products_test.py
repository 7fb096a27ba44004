"""Products of token rows: the gradients of plain ones, in wider dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import products


@pytest.mark.parametrize(
  ('product', 'plain', 'shapes'),
  [
    (
      products.mix,
      lambda y, d, r, m: (y + d @ r) @ m.T,
      [(7, 5), (7, 3), (3, 5), (6, 5)],
    ),
    (products.product, lambda x, w: x @ w.T, [(7, 5), (6, 5)]),
  ],
)
def test_products_and_their_gradients_are_plain_ones(product, plain, shapes):
  """Float64, random shapes that are all different."""
  rng = np.random.default_rng(0)
  numerics = products.Numerics(jnp.float64, 'highest')
  with jax.enable_x64(True):
    *inputs, g = (jnp.asarray(rng.normal(size=s)) for s in (*shapes, (7, 6)))
    out, pull = jax.vjp(functools.partial(product, numerics), *inputs)
    expected, plain_pull = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    for a, b in zip(pull(g), plain_pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
      assert np.max(np.abs(b)) > 0.1


def test_gradients_of_weights_are_not_rounded_before_they_are_summed():
  """257 has nine bits, one more than bfloat16."""
  numerics = products.Numerics(jnp.bfloat16)
  tokens = jnp.ones((257, 1), jnp.bfloat16)
  none, one = jnp.zeros_like(tokens), jnp.ones((1, 1))

  def gradient(rows):
    return jax.grad(lambda w: rows(w).astype(jnp.float32).sum())(one).item()

  def narrow(w):
    return tokens @ w.astype(jnp.bfloat16)

  assert gradient(lambda w: products.product(numerics, tokens, w)) == 257
  assert gradient(lambda w: products.mix(numerics, tokens, none, one, w)) == 257
  assert gradient(narrow) == 256
