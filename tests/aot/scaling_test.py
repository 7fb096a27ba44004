"""The formulae against what compiled programs send and compute."""

import jax
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import flops
from lipnext_jax.aot import scaling
from lipnext_jax.data import sources

DEPTH, WIDTH, IMAGES = 8, 32, 4
FACTS = sources.Facts((8, 8, 1), np.dtype(np.float32), 10, 160)


def compile_on(data, fsdp):
  c = config_lib.default_config()
  c.model.depth, c.model.width, c.model.patch_size = DEPTH, WIDTH, 2
  c.model.remat, c.model.shift_ratio = 'products', 1 / 8
  c.batch_size, c.duration = IMAGES * data * fsdp, '10 steps'
  c.optimizer.warmup = '0 steps'
  c.optimizer.name, c.optimizer.lookahead_period = 'momentum', 0
  c.optimizer.retraction_period = '0 steps'
  c.mesh.data, c.mesh.fsdp = data, fsdp
  return compile_lib.compile_step(c, jax.devices(), FACTS)


@pytest.mark.parametrize(('data', 'fsdp'), [(1, 8), (2, 4)])
def test_the_formulae_are_what_a_program_sends_and_computes(data, fsdp):
  compiled = compile_on(data, fsdp)
  sizes = scaling.Sizes(DEPTH, WIDTH, 16, IMAGES, gathered=4, shift_ratio=1 / 8)
  step = scaling.predict(sizes, data, fsdp)
  sent: dict[tuple[str, int], float] = {}
  for c in collectives.read(compiled.executable.as_text()):
    sent[c.kind, c.group] = sent.get((c.kind, c.group), 0) + c.sent
  assert sent['all-gather', fsdp] == step.gathers
  assert sent['reduce-scatter', fsdp] == step.reductions
  assert sent['all-to-all', fsdp] == step.swaps
  if data > 1:
    replicas = sent['all-gather', data] + sent['all-reduce', data]
    assert replicas == pytest.approx(step.replicas, rel=0.02)
  else:
    assert step.replicas == 0
  # Products of the passes; stem and head are small, of a width of 32 too.
  devices = data * fsdp
  whole = flops.count(compiled.jaxpr).total
  update = flops.count(compiled.jaxpr, 'optimizer').total
  passes = (whole - update) / devices
  assert step.passes < passes < 1.1 * step.passes


def test_layers_that_do_not_divide_are_split_over_rows_alone():
  sizes = scaling.Sizes(32, 64, 16, IMAGES)
  whole = scaling.predict(sizes, data=1, fsdp=32)
  twice = scaling.predict(sizes, data=2, fsdp=32)
  assert twice.update == whole.update
  assert scaling.predict(sizes, data=2, fsdp=16).update == whole.update
  assert scaling.predict(sizes, data=2, fsdp=8).update > whole.update


def test_seconds_use_the_network_where_it_is_slow():
  chip = chips.CHIPS['h100']
  step = scaling.Step(
    chip.compute, chip.float32, False, chip.links, 0, chip.network, 0
  )
  assert step.seconds(chip, replicas_over_network=True) == (2, 2)
  assert step._replace(update_narrow=True).seconds(chip)[0] < 2
  near = step.seconds(chip)[1]
  assert near == pytest.approx(1 + chip.network / chip.links)
