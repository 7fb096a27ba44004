"""Each example learns, and what it holds orthogonal stays so."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance

from examples import copying_memory
from examples import equinox_orthogonal
from examples import nnx_lipnext
from examples import nnx_orthogonal
from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.optim import orthogonality_error


def test_copying_asks_for_the_first_symbols_at_the_end():
  inputs, targets = copying_memory.make_batch(jax.random.key(0), 4, 7)
  assert inputs.shape == targets.shape == (4, 27)
  np.testing.assert_array_equal(targets[:, -10:], inputs[:, :10])
  assert np.all(inputs[:, 16] == copying_memory.GO)
  assert np.sum(np.asarray(inputs) == copying_memory.GO) == 4


@pytest.mark.slow  # It trains.
def test_copying_beats_blind_guessing():
  params, losses = copying_memory.train(
    delay=5, steps=80, width=64, batch=32, learning_rate=5e-4
  )
  blind = 10 * math.log(copying_memory.SYMBOLS) / 25
  assert np.mean(losses[-5:]) < 0.7 * blind
  assert orthogonality_error(params['R']) < 1e-5


def test_equinox_learns_a_function_that_is_1_lipschitz():
  untrained = equinox_orthogonal.Net(8, jax.random.key(0))
  model, error = equinox_orthogonal.train(150)
  assert error < 0.1
  for before, layer in zip(untrained.layers, model.layers, strict=True):
    assert orthogonality_error(layer.weight) < 1e-5
    assert (before.weight != layer.weight).any()


@pytest.mark.slow  # It trains.
def test_nnx_separates_the_rings_and_is_1_lipschitz():
  model, accuracy = nnx_orthogonal.train(120, width=8, depth=2)
  assert accuracy > 0.9
  for layer in (*model.layers, model.head):
    assert orthogonality_error(layer.kernel[...]) < 1e-5
  x, _ = nnx_orthogonal.make_batch(jax.random.key(7), 200)
  logits = model(x) / model.scale[...]
  apart, distances = map(distance.pdist, (logits[:, None], x))
  assert np.all(apart <= distances * (1 + 1e-4) + 1e-5)


@pytest.mark.slow  # It trains.
def test_the_bridged_lipnext_learns_digits_and_certifies_them():
  data, (images, labels) = nnx_lipnext.load_digits()
  model = nnx_lipnext.train(*data, steps=100, depth=2, width=32)
  params = nnx_lipnext.pure_params(model)
  # The 100th step retracts them.
  blocks = params['blocks']
  for matrices in (params['stem']['Q'], blocks['M'], blocks['R']):
    assert jnp.max(orthogonality_error(matrices)) < 1e-5

  linen = model.to_nnx__module
  logits = linen.apply({'params': params}, images)
  np.testing.assert_allclose(model(images), logits, atol=1e-6)

  predictions, radii, lipschitz = nnx_lipnext.certify_images(model, images)
  assert 1 <= lipschitz < 1.001
  correct = predictions == labels
  assert jnp.mean(correct) > 0.8
  assert jnp.mean(correct & (radii > nnx_lipnext.EPSILON)) > 0.3

  rows = models.head_kernel({'params': params})
  expected = certify.certified_radius(logits, rows, lipschitz)
  np.testing.assert_array_equal(predictions, expected[0])
  # Less the rounding of float32, for which `fast_certifier` allows.
  np.testing.assert_allclose(radii, expected[1], atol=1e-4)
