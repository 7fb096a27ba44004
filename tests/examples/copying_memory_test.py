"""The example learns, and its matrix stays orthogonal."""

import math

import jax
import numpy as np
import pytest

from examples import copying_memory
from lipnext_jax.optim import orthogonality_error


def test_batches_ask_for_the_first_symbols_at_the_end():
  inputs, targets = copying_memory.make_batch(jax.random.key(0), 4, 7)
  assert inputs.shape == targets.shape == (4, 27)
  np.testing.assert_array_equal(targets[:, -10:], inputs[:, :10])
  assert np.all(inputs[:, 16] == copying_memory.GO)
  assert np.sum(np.asarray(inputs) == copying_memory.GO) == 4


@pytest.mark.slow  # It trains.
def test_it_beats_blind_guessing():
  params, losses = copying_memory.train(
    delay=5, steps=80, width=64, batch=32, learning_rate=5e-4
  )
  blind = 10 * math.log(copying_memory.SYMBOLS) / 25
  assert np.mean(losses[-5:]) < 0.7 * blind
  assert orthogonality_error(params['R']) < 1e-5
