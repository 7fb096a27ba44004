import jax
import pytest

from lipnext_jax.aot import chips
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.data import sources


@pytest.fixture(scope='session')
def found(make_tiny_config):
  """(config, compiled step, summary) on two devices."""
  config = make_tiny_config()
  config.mesh.data, config.mesh.fsdp = 1, 2
  config.model.remat = 'block'
  info = sources.describe(config.dataset)
  compiled = compile_lib.compile_step(config, jax.devices()[:2], info)
  chip = chips.CHIPS['cpu']
  return config, compiled, summary_lib.summarize(config, compiled, 'two', chip)
