"""The example learns, and every layer stays orthogonal."""

import importlib.util
import pathlib

import jax

from lipnext_jax.optim import orthogonality_error

PATH = pathlib.Path(__file__).parents[2] / 'examples' / 'equinox_orthogonal.py'
spec = importlib.util.spec_from_file_location('equinox_orthogonal', PATH)
equinox_orthogonal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(equinox_orthogonal)


def test_it_learns_a_function_that_is_1_lipschitz():
  untrained = equinox_orthogonal.Net(8, jax.random.key(0))
  model, error = equinox_orthogonal.train(150)
  assert error < 0.1
  for before, layer in zip(untrained.layers, model.layers, strict=True):
    assert orthogonality_error(layer.weight) < 1e-5
    assert (before.weight != layer.weight).any()
