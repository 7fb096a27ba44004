"""Strict by default: 8 CPU devices, and nothing is promoted in silence."""

import os

# Before JAX is imported anywhere: the platform and the number of devices are
# read once.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng():
  """A fresh key; the same in every test."""
  return jax.random.key(0)
