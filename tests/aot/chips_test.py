from importlib import resources
import re

import pytest

from lipnext_jax.aot import chips


@pytest.mark.parametrize('kind', chips.CHIPS)
def test_figures_are_of_the_right_order_and_memory_is_that_of_the_target(kind):
  chip = chips.CHIPS[kind]
  assert chip.network < chip.links <= chip.float32 <= chip.compute
  assert bool(chip.target) == (chip.platform == 'cuda')
  if chip.target:
    files = resources.files('lipnext_jax.aot') / 'targets'
    text = (files / chip.target).read_text(encoding='utf-8')
    assert chip.memory == int(re.search(r'device_memory_size: (\d+)', text)[1])
