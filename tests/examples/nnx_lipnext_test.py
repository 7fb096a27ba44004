"""The bridged model learns, is the Linen one, and its certificates hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import nnx_lipnext
from lipnext_jax.optim import orthogonality_error


@pytest.mark.slow  # It trains.
def test_it_learns_digits_and_certifies_them():
  data, (images, labels) = nnx_lipnext.load_digits()
  model = nnx_lipnext.train(*data, steps=100, depth=2, width=32)
  params = nnx_lipnext.pure_params(model)
  # The 100th step retracts them.
  for matrix in (params['stem']['Q'], *params['blocks']['M']):
    assert orthogonality_error(matrix) < 1e-5
  for rows in params['blocks']['R']:
    assert orthogonality_error(rows.T) < 1e-5

  linen = model.to_nnx__module
  apply = jax.jit(lambda images: linen.apply({'params': params}, images))
  logits = apply(images)
  np.testing.assert_allclose(model(images), logits, atol=1e-6)

  predictions, radii, lipschitz = nnx_lipnext.certify_images(model, images)
  assert 1 <= lipschitz < 1.001
  correct = predictions == labels
  assert jnp.mean(correct) > 0.8
  assert jnp.mean(correct & (radii > nnx_lipnext.EPSILON)) > 0.3

  # The shortest way to the runner-up, as far as the gradient knows it.
  runner_up = jnp.argsort(logits, axis=-1)[:, -2]

  @jax.jit
  @jax.grad
  def slope(images):
    each = jnp.arange(len(images))
    f = apply(images)
    return jnp.sum(f[each, predictions] - f[each, runner_up])

  way = slope(images)
  way /= jnp.linalg.norm(way, axis=(1, 2), keepdims=True)
  radii = radii[:, None, None, None]
  within = jnp.argmax(apply(images - 0.999 * radii * way), axis=-1)
  np.testing.assert_array_equal(within, predictions)
  beyond = jnp.argmax(apply(images - 3 * radii * way), axis=-1)
  assert jnp.mean(beyond != predictions) > 0.5
