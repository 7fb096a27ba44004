"""Bytes and operations against hand counts; the estimate against formulae."""

import math

import jax
import pytest

from lipnext_jax import train
from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops
from lipnext_jax.aot import report
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.data import sources
from lipnext_jax.parallel import mesh as mesh_lib


def test_bytes_are_those_of_a_hand_count(found):
  config, _, summary = found
  c, depth, tokens = config.model.width, config.model.depth, 2 * 2
  k = 4 * math.floor(config.model.shift_ratio * c)
  stacks = depth * (k + c) * c  # R and M: half of them on each of 2 devices.
  whole = 16 * 16 + c + depth * (c + tokens) + 10 * c + 10  # Q has side 16.
  assert summary['parameter_count'] == stacks + whole
  assert summary['paper_parameter_count'] == 2 * depth * c * c
  assert summary['memory']['parameters'] == 4 * (stacks // 2 + whole)
  # Euclidean leaves have two moments and a slow copy, orthogonal ones a slow
  # copy and, packed, two moments and ΣΔ of Ω [c, c]. A few counters remain.
  euclidean = whole - 16 * 16
  algebra = depth * c * c + 16 * 16  # Half of R's and M's on a device; and Q's.
  slow = stacks // 2 + 16 * 16
  moments = 4 * (slow + 3 * algebra // 2 + 3 * euclidean)
  assert 0 <= summary['memory']['optimizer'] - moments < 64
  # Inputs of all blocks, for half of the batch.
  saved = depth * config.batch_size // 2 * tokens * c * 4
  assert summary['memory']['saved_activations'] == saved


def test_of_baselines_no_activations_are_counted(make_tiny_config):
  config = make_tiny_config()
  config.model.name, config.model.activation = 'bronet', 'minmax'
  config.model.patch_size = 2
  mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
  program = train.build(config, mesh, sources.describe(config.dataset))
  jaxpr = summary_lib.trace(program).jaxpr
  refused = summary_lib.Compiled(program, jaxpr, None, 'too large')
  summary = summary_lib.summarize(config, refused, 'one', chips.CHIPS['cpu'])
  assert 'saved_activations' not in summary['memory']
  assert summary['paper_parameter_count'] == 0
  text = report.format_text(summary)
  assert 'saved' not in text
  assert text.endswith('does not fit: too large')


def test_model_flops_are_those_of_a_hand_count(found):
  config, _, summary = found
  c, tokens = config.model.width, config.batch_size * 4
  stem = 2 * tokens * 16 * c
  k = 4 * math.floor(config.model.shift_ratio * c)
  blocks = config.model.depth * 2 * tokens * c * (c + 2 * k)
  head = 2 * config.batch_size * c * 10
  # Backward takes twice as much again, with the gradient of the images, which
  # the compiler leaves out later. B R and Bᵀ M are products of matrices alone.
  matrices = config.model.depth * 2 * (2 * k * c * c)
  expected = 3 * (stem + blocks + head) + matrices
  assert summary['flops']['model'] == expected
  assert summary['flops']['executed'] > expected


def test_too_much_for_a_chip_without_a_strict_compiler_does_not_fit(found):
  config, compiled, _ = found
  small = chips.CHIPS['cpu']._replace(memory=1024)
  summary = summary_lib.summarize(config, compiled, 'small', small)
  assert not summary['fits']
  assert 'does not fit: peak' in report.format_text(summary)


def test_what_a_cpu_needs_includes_its_temporaries(found):
  _, _, summary = found
  memory = summary['memory']
  assert memory['peak'] >= memory['arguments'] + memory['temporaries']


def gather(size, crosses):
  return collectives.Collective('all-gather', 'f32', size, 2, crosses, 3)


def test_the_estimate_is_split_over_devices_and_networks():
  """Half of 8 bytes is sent three times over links and over the network."""
  chip = chips.CHIPS['h100']
  work = flops.Flops(chip.compute, chip.float32)
  sent = [gather(8, False), gather(8, True)]
  time = summary_lib.estimate(chip, 4, work, sent, 64)
  network = 12 / chip.links + 12 / chip.network
  assert time['compute_seconds'] == pytest.approx(2 / 4)
  assert time['network_seconds'] == pytest.approx(network)
  assert time['step_seconds'] == [0.5, time['network_seconds'] + 0.5]
  assert time['images_per_second'][1] == 128
