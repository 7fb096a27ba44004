import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.models.baselines import dense


def test_layers_are_products_biases_and_activations_in_order():
  rng = np.random.default_rng(0)
  x, q, bias = (rng.normal(size=s) for s in ((2, 3), (4, 3, 3), (4, 3)))
  with jax.enable_x64(True):
    got = dense.layers(
      *map(jnp.asarray, (x, q, bias)), lambda y, b: jnp.tanh(y + b[None]), None
    )
  expected = x
  for one, b in zip(q, bias, strict=True):
    expected = np.tanh(np.stack([one @ row + b for row in expected]))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
  backwards = x
  for one, b in zip(q[::-1], bias[::-1], strict=True):
    backwards = np.tanh(np.stack([one @ row + b for row in backwards]))
  assert np.max(np.abs(backwards - expected)) > 0.1
