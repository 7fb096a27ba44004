import jax
import pytest

from lipnext_jax import train
from lipnext_jax.aot import chips
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib


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


@pytest.fixture(scope='session')
def summarize_shapes():
  """(config, number of devices) → what is known without compiling."""

  def run(config, devices):
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:devices])
    program = train.build(config, mesh, sources.describe(config.dataset))
    jaxpr = summary_lib.trace(program).jaxpr
    refused = summary_lib.Compiled(program, jaxpr, None, 'too large')
    return summary_lib.summarize(config, refused, 'two', chips.CHIPS['cpu'])

  return run
