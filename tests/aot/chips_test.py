from importlib import resources
import re

import pytest

from lipnext_jax import errors
from lipnext_jax.aot import chips


def test_kinds_of_devices_are_told_apart():
  kinds = {'TPU v5p': 'v5p', 'TPU v5 lite': 'v5e', 'NVIDIA H200': 'h200'}
  for kind, name in kinds.items():
    assert chips.by_device_kind(kind) == chips.CHIPS[name]
  with pytest.raises(errors.ConfigError, match='is not a known chip'):
    chips.by_device_kind('NVIDIA A100')


@pytest.mark.parametrize('kind', chips.CHIPS)
def test_figures_are_of_the_right_order(kind):
  chip = chips.CHIPS[kind]
  assert 0 < chip.usable <= 1
  assert chip.float32 <= chip.compute
  assert chip.network < chip.links


@pytest.mark.parametrize('kind', ['h100', 'h200', 'b200'])
def test_memory_is_that_of_the_target(kind):
  chip = chips.CHIPS[kind]
  files = resources.files('lipnext_jax.aot') / 'targets'
  text = (files / chip.target).read_text(encoding='utf-8')
  assert chip.memory == int(re.search(r'device_memory_size: (\d+)', text)[1])
