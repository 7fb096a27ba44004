import subprocess
import sys

import jax
import pytest

from lipnext_jax import errors
from lipnext_jax.aot import topology


@pytest.mark.parametrize(
  'name',
  ['v5p', 'v7:2x2', 'v5p:2x', 'v5p:0x2', 'h100:8', 'h100:1x1x8*2', 'cpu:2x2'],
)
def test_names_that_say_nothing_are_refused(name):
  with pytest.raises(errors.ConfigError, match='is not a machine'):
    topology.find_devices(name)


def test_data_goes_over_the_network_between_slices():
  if topology.missing_extra('tpu'):
    pytest.skip("needs the extra 'tpu'")
  code = """
from lipnext_jax import config
from lipnext_jax.aot import topology
from lipnext_jax.parallel import mesh
c = config.default_config().mesh
c.data, c.fsdp = 4, 2
_, devices = topology.find_devices('v5e:2x2*2')
grid = mesh.make_mesh(c, devices).devices
print([[mesh.slice_of(d) for d in row.flat] for row in grid])
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[[0, 0], [0, 0], [1, 1], [1, 1]]'


def test_cpu_devices_are_those_that_jax_has():
  chip, devices = topology.find_devices('cpu:4')
  assert (chip.platform, len(devices)) == ('cpu', 4)
  with pytest.raises(errors.ConfigError, match='more than the 8 CPU devices'):
    topology.find_devices('cpu:16')


@pytest.mark.parametrize(
  ('name', 'extra'), [('v5p:2x2x1', 'tpu'), ('h100:1x1x8', 'aot-cuda')]
)
def test_a_missing_compiler_is_named_with_its_extra(name, extra, monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match=rf'\[{extra}\]'):
    topology.find_devices(name)
  assert jax.default_backend() == 'cpu'
