"""The example learns, and every layer stays orthogonal."""

import jax

from examples import equinox_orthogonal
from lipnext_jax.optim import orthogonality_error


def test_it_learns_a_function_that_is_1_lipschitz():
  untrained = equinox_orthogonal.Net(8, jax.random.key(0))
  model, error = equinox_orthogonal.train(150)
  assert error < 0.1
  for before, layer in zip(untrained.layers, model.layers, strict=True):
    assert orthogonality_error(layer.weight) < 1e-5
    assert (before.weight != layer.weight).any()
