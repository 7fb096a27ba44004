"""A workdir with three checkpoints."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import checkpoint


@pytest.fixture(scope='session')
def make_state():
  """A function step → state, which is hard to compress."""
  noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
  return lambda step: {'w': jnp.asarray(noise + step), 'step': jnp.int32(step)}


@pytest.fixture(scope='session')
def saved(make_state, tmp_path_factory):
  """A workdir with the steps 8 (the best), 32 and 64 of five. Do not write."""
  folder = tmp_path_factory.mktemp('saved')
  checkpointer = checkpoint.Checkpointer(str(folder), config_hash='h')
  assert checkpointer.find_newest() is None
  metrics = {2: 50.0, 8: 90.0, 16: 30.0, 32: 20.0, 64: None}
  for step, certified in metrics.items():
    checkpointer.save(step, make_state(step), certified)
  assert checkpointer.close() == 64
  return folder


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy of `saved`."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'run'))
