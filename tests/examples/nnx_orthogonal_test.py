"""The example learns; every layer stays orthogonal, the model 1-Lipschitz."""

import jax
import numpy as np
import pytest

from examples import nnx_orthogonal
from lipnext_jax.optim import orthogonality_error


@pytest.mark.slow  # It trains.
def test_it_separates_the_rings():
  model, accuracy = nnx_orthogonal.train(120, width=8, depth=2)
  assert accuracy > 0.9
  for layer in (*model.layers, model.head):
    assert orthogonality_error(layer.kernel[...]) < 1e-5
  x, _ = nnx_orthogonal.make_batch(jax.random.key(7), 200)
  logits = np.asarray(model(x) / model.scale[...])
  x = np.asarray(x)
  distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
  slopes = np.abs(logits[:, None] - logits[None])
  assert np.all(slopes <= distances * (1 + 1e-4) + 1e-5)
