import sys

import jax
import pytest

from lipnext_jax import errors
from lipnext_jax.aot import topology


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('v7:2x2', 'is not a machine'),
    ('v5p:0x2', 'is not a machine'),
    ('h100:1x1x8*2', 'is not a machine'),
    ('cpu:2x2', 'is not a machine'),
    ('cpu:16', 'more than the 8 CPU devices'),
    ('v5p:2x2x1', r'\[tpu\]'),
    ('h100:1x1x8', r'\[aot-cuda\]'),
  ],
)
def test_a_machine_without_form_devices_or_compiler_is_refused(
  name, problem, monkeypatch
):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match=problem):
    topology.find_devices(name)
  chip, devices = topology.find_devices('cpu:4')
  assert (chip.platform, len(devices)) == ('cpu', 4)
  assert jax.default_backend() == 'cpu'


def test_data_goes_over_the_network_between_slices(run_command):
  if topology.missing_extra('tpu'):
    pytest.skip("needs the extra 'tpu'")
  code = """
from lipnext_jax import parallel
from lipnext_jax.aot import topology
_, devices = topology.find_devices('v5e:2x2*2')
grid = parallel.make_mesh({'data': 4, 'fsdp': 2}, devices).devices
print([[parallel.slice_of(d) for d in row.flat] for row in grid])
"""
  done = run_command([sys.executable, '-c', code])
  assert done.stdout.strip() == '[[0, 0], [0, 0], [1, 1], [1, 1]]'
