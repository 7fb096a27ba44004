"""A workdir with three checkpoints, and a function that damages them."""

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


@pytest.fixture(scope='session')
def flip():
  """A function that flips a bit of a checkpoint's largest file of a name."""

  def flip_bit(workdir, step, name='*'):
    found = (workdir / 'checkpoints' / str(step)).rglob(name)
    path = max(found, key=lambda path: path.is_file() * path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))

  return flip_bit
