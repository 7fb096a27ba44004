"""Compiles for CPUs, and for accelerators whose compiler is installed."""

import json
import math
import os
import re
import sys

import jax
import pytest

from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import flops
from lipnext_jax.aot import topology
from lipnext_jax.data import sources

# A step with few branches, which accelerators' compilers take seconds for.
PLAIN = (
  '--config.optimizer.name=momentum',
  '--config.optimizer.lookahead_period=0',
  '--config.optimizer.retraction_period=0 steps',
)


@pytest.fixture
def run(run_command, tmp_path):
  """Runs the command; returns (exit code, last line, summary)."""

  def run(*flags):
    workdir = tmp_path / 'run'  # Which is made.
    command = [sys.executable, '-m', 'lipnext_jax.main', '--mode=compile']
    command += ['--config=configs/digits.py:smoke', f'--workdir={workdir}']
    # The suite's flags without the number of devices.
    flag = '--xla_force_host_platform_device_count=8'
    own = os.environ['XLA_FLAGS'].replace(flag, '')
    done = run_command([*command, *flags, *PLAIN], code=None, XLA_FLAGS=own)
    assert 'Traceback' not in done.stderr
    assert os.listdir(workdir) == ['compile.json'], done.stderr
    summary = json.loads((workdir / 'compile.json').read_text())
    assert summary['sharding'] in done.stdout
    return done.returncode, done.stdout.splitlines()[-1], summary

  return run


def test_sixteen_cpu_devices(run):
  mesh = {'data': 2, 'fsdp': 4, 'tensor': 2}
  axes = [f'--config.mesh.{axis}={size}' for axis, size in mesh.items()]
  code, last, summary = run(
    '--topology=cpu:16', '--config.model.depth=16', *axes
  )
  assert code == 0
  assert last.startswith('fits: peak')
  assert summary['mesh'] == mesh


ACCELERATORS = {'tpu': 'v5e:2x2', 'cuda': 'h100:1x1x4'}


@pytest.mark.parametrize('platform', ACCELERATORS)
def test_compiling_for_accelerators_that_need_not_exist(platform, run):
  if extra := topology.missing_extra(platform):
    pytest.skip(f"needs the extra '{extra}'")
  flags = [f'--topology={ACCELERATORS[platform]}', '--config.mesh.data=1']
  flags += ['--config.mesh.fsdp=4', '--config.model.depth=4']
  flags += ['--config.model.dtype=bfloat16']
  code, last, summary = run(*flags, '--config.model.width=128')
  assert code == 0
  assert last.startswith('fits: peak')
  counts = {(c['kind'], c['dtype']): c['count'] for c in summary['collectives']}
  # R and M of every layer, in forward; backward may reuse those of 4 layers.
  assert counts['all-gather', 'bf16'] >= 2 * 4
  swaps = sum(n for (kind, _), n in counts.items() if kind == 'all-to-all')
  assert swaps == 4
  # A batch that the chip cannot hold.
  flags += ['--config.model.width=4096', '--config.batch_size=8388608']
  code, last, _ = run(*flags)
  assert code == 3
  assert last.startswith('does not fit: ')


def test_what_a_compiler_refuses_does_not_fit_and_other_errors_are_not_hidden(
  tiny_config, monkeypatch, capsys
):
  def fail(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  # No activations of baselines are counted.
  tiny_config.model.name, tiny_config.model.activation = 'bronet', 'minmax'
  tiny_config.model.patch_size = 2
  tiny_config.optimizer.retraction_period = '1 epochs'
  message = (
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
    'in memory space hbm. Used 22.65G of 15.75G hbm. Exceeded hbm capacity '
    'by 6.90G.\n\nTotal hbm usage >= 22.91G:\n'
  )
  assert compile_lib.run(tiny_config, 'cpu:1', None) == 3
  out = capsys.readouterr().out
  assert re.search(r'\ndoes not fit: Used 22\.65G .* by 6\.90G\.\n$', out)
  assert 'saved' not in out
  assert '  as the paper counts                0  (R, M whole)\n' in out
  message = 'INTERNAL: a bug'
  with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
    compile_lib.run(tiny_config, 'cpu:1', None)


@pytest.fixture(scope='module')
def found(make_tiny_config):
  """(config, compiled step, summary) on two devices."""
  config = make_tiny_config()
  config.mesh.data, config.mesh.fsdp = 1, 2
  config.model.remat = 'block'
  info = sources.describe(config.dataset)
  compiled = compile_lib.compile_step(config, jax.devices()[:2], info)
  chip = chips.CHIPS['cpu']
  return config, compiled, compile_lib.summarize(config, compiled, 'two', chip)


def test_bytes_are_those_of_a_hand_count(found):
  config, _, summary = found
  memory = summary['memory']
  c, depth, tokens = config.model.width, config.model.depth, 2 * 2
  k = 4 * math.floor(config.model.shift_ratio * c)
  stacks = depth * (k + c) * c  # R and M: half of them on each of 2 devices.
  whole = 16 * 16 + c + depth * (c + tokens) + 10 * c + 10  # Q has side 16.
  assert summary['parameter_count'] == stacks + whole
  assert summary['paper_parameter_count'] == 2 * depth * c * c
  assert memory['parameters'] == 4 * (stacks // 2 + whole)
  # Euclidean leaves have two moments and a slow copy, orthogonal ones a slow
  # copy and, packed, two moments and ΣΔ of Ω [c, c]. A few counters remain.
  euclidean = whole - 16 * 16
  algebra = depth * c * c + 16 * 16  # Half of R's and M's on a device; and Q's.
  slow = stacks // 2 + 16 * 16
  moments = 4 * (slow + 3 * algebra // 2 + 3 * euclidean)
  assert 0 <= memory['optimizer'] - moments < 64
  # Inputs of all blocks, for half of the batch.
  saved = depth * config.batch_size // 2 * tokens * c * 4
  assert memory['saved_activations'] == saved
  # What a CPU needs includes its temporaries.
  assert memory['peak'] >= memory['arguments'] + memory['temporaries']


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


def test_the_report_gives_every_number_its_unit_and_the_verdict(found):
  config, compiled, summary = found
  # The compiler of a CPU refuses nothing.
  small = chips.CHIPS['cpu']._replace(memory=1024)
  tight = compile_lib.summarize(config, compiled, 'small', small)
  assert 'does not fit: peak' in compile_lib.format_text(tight)
  summary = summary | {
    'parameter_count': 2_190_000_000,
    'memory': summary['memory'] | {'parameters': 2**29},
    'flops': summary['flops'] | {'model': 3.42e15},
    'collectives': [summary['collectives'][0] | {'over_slices': True}],
    'estimate': summary['estimate'] | {'images_per_second': [1600.0, 1706.7]},
  }
  text = compile_lib.format_text(summary)
  for part in (
    'two: 2 devices, mesh data 1 × fsdp 2 × tensor 1',
    '2,190,000,000',
    '512.00 MiB',
    '3.42 PFLOP',
    'devices over slices:',
    'estimate (roofline at data sheet rates, not a measurement)',
    '1,600 … 1,707 images/s',
  ):
    assert part in text, part
  assert re.search(r'\nfits: peak .* of 16.00 GiB per device$', text)


def test_the_estimate_is_split_over_devices_and_networks():
  """Half of 8 bytes is sent three times over links and over the network."""
  chip = chips.CHIPS['h100']
  work = flops.Flops(chip.compute, chip.float32)
  near = collectives.Collective('all-gather', 'f32', 8, 2, False, 3)
  sent = [near, near._replace(crosses=True)]
  time = compile_lib._estimate(chip, 4, work, sent, 64)
  network = 12 / chip.links + 12 / chip.network
  assert time['compute_seconds'] == pytest.approx(2 / 4)
  assert time['network_seconds'] == pytest.approx(network)
  assert time['step_seconds'] == [0.5, time['network_seconds'] + 0.5]
  assert time['images_per_second'][1] == 128
