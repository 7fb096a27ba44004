import math

import jax
import pytest

from lipnext_jax.aot import chips
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import report
from lipnext_jax.aot import summary as summary_lib
from lipnext_jax.data import sources


@pytest.fixture(scope='module')
def found(make_tiny_config):
  config = make_tiny_config()
  config.mesh.data, config.mesh.fsdp = 1, 2
  config.model.remat = 'block'
  facts = sources.describe(config.dataset)
  compiled = compile_lib.compile_step(config, jax.devices()[:2], facts)
  chip = chips.CHIPS['cpu']
  return config, compiled, summary_lib.summarize(config, compiled, 'two', chip)


def test_bytes_are_those_of_a_hand_count(found):
  config, _, summary = found
  c, depth, tokens = config.model.width, config.model.depth, 2 * 2
  k = 4 * math.floor(config.model.shift_ratio * c)
  stacks = depth * (k + c) * c  # R and M: half of them on each of 2 devices.
  whole = 16 * 16 + c + depth * (c + tokens) + 10 * c + 10  # Q has side 16.
  assert summary['parameter_count'] == stacks + whole
  assert summary['paper_parameter_count'] == 2 * depth * c * c
  assert summary['memory']['parameters'] == 4 * (stacks // 2 + whole)
  # NAdam's two moments and the slow copy; of the orthogonal ones the slow copy
  # and, packed, two moments and ΣΔ of Ω [c, c]: and counters.
  euclidean = whole - 16 * 16
  algebra = depth * c * c + 16 * 16  # Of R and M half on each device; and Q.
  slow = stacks // 2 + 16 * 16
  moments = 4 * (slow + 3 * algebra // 2 + 3 * euclidean)
  assert 0 <= summary['memory']['optimizer'] - moments < 64
  # The input of every block, of half of the batch.
  saved = depth * config.batch_size // 2 * tokens * c * 4
  assert summary['memory']['saved_activations'] == saved


def test_unrolled_blocks_keep_what_a_loop_keeps(found):
  config, _, summary = found
  config = config.copy_and_resolve_references()
  config.model.unroll = True
  facts = sources.describe(config.dataset)
  compiled = compile_lib.compile_step(config, jax.devices()[:2], facts)
  chip = chips.CHIPS['cpu']
  unrolled = summary_lib.summarize(config, compiled, 'two', chip)
  key = 'saved_activations'
  assert unrolled['memory'][key] == summary['memory'][key] > 0


def test_of_rivals_no_activations_are_counted(make_tiny_config):
  config = make_tiny_config()
  config.model.name, config.model.activation = 'bronet', 'minmax'
  config.model.patch_size = 2
  facts = sources.describe(config.dataset)
  compiled = compile_lib.compile_step(config, jax.devices()[:1], facts)
  chip = chips.CHIPS['cpu']
  summary = summary_lib.summarize(config, compiled, 'one', chip)
  assert 'saved_activations' not in summary['memory']
  assert summary['paper_parameter_count'] == 0
  text = report.format_text(summary)
  assert 'saved' not in text
  assert 'fits: peak' in text


def test_model_flops_are_those_of_a_hand_count(found):
  config, _, summary = found
  c, tokens = config.model.width, config.batch_size * 4
  stem = 2 * tokens * 16 * c
  k = 4 * math.floor(config.model.shift_ratio * c)
  blocks = config.model.depth * 2 * tokens * c * (c + 2 * k)
  head = 2 * config.batch_size * c * 10
  # Twice as much again in backward, the gradient of the images included: it is
  # in the program as traced, and the compiler leaves it out.
  # Of matrices alone: B R and Bᵀ M, in backward.
  matrices = config.model.depth * 2 * (2 * k * c * c)
  expected = 3 * (stem + blocks + head) + matrices
  assert summary['flops']['model'] == expected
  assert summary['flops']['executed'] > expected


def test_the_report_says_it_in_words(found):
  _, _, summary = found
  text = report.format_text(summary)
  assert 'two: 2 devices, mesh data 1 × fsdp 2 × tensor 1' in text
  assert 'all-to-all' in text
  assert 'estimate (roofline' in text
  assert summary['fits']
  assert text.splitlines()[-1].startswith('fits: peak')


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
