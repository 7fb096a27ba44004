"""Products of token rows: the gradients of plain ones, in wider dtypes."""

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.models import products

HIGHEST = products.Numerics(jnp.float64, 'highest')


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def test_mix_and_its_gradients_are_those_of_plain_products():
  """Float64, random shapes that are all different."""
  with jax.enable_x64(True):
    y, d, r, m, g = draw((7, 5), (7, 3), (3, 5), (6, 5), (7, 6))

    def plain(y, d, r, m):
      return (y + d @ r) @ m.T

    out, pull = jax.vjp(lambda *a: products.mix(HIGHEST, *a), y, d, r, m)
    expected, plain_pull = jax.vjp(plain, y, d, r, m)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    for a, b in zip(pull(g), plain_pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    for a, b in zip(pull(2 * g), plain_pull(g), strict=True):
      assert np.abs(a - b).max() > 0.1  # The check tells another cotangent.


def test_product_and_its_gradients_are_plain_ones():
  with jax.enable_x64(True):
    x, w, g = draw((7, 5), (6, 5), (7, 6))
    out, pull = jax.vjp(lambda *a: products.product(HIGHEST, *a), x, w)
    np.testing.assert_allclose(out, x @ w.T, rtol=0, atol=1e-13)
    for a, b in zip(pull(g), (g @ w, g.T @ x), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


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
