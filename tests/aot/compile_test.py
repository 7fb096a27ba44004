"""Runs `--mode=compile` for CPUs, and for accelerators with a compiler here."""

import json
import os
import subprocess
import sys

import jax
import pytest

from lipnext_jax import errors
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.aot import topology

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
# A step with few branches, which accelerators' compilers take seconds for.
PLAIN = (
  '--config.optimizer.name=momentum',
  '--config.optimizer.lookahead_period=0',
  '--config.optimizer.retraction_period=0 steps',
)


def run(*flags):
  command = [sys.executable, '-m', 'lipnext_jax.main', '--mode=compile']
  # The suite's flags without the number of devices.
  flag = '--xla_force_host_platform_device_count=8'
  environment = {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(flag, '')}
  return subprocess.run(
    [*command, '--config=configs/digits.py:smoke', *flags],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


@pytest.mark.slow  # A program.
def test_sixteen_cpu_devices_and_a_copy_in_the_workdir(tmp_path):
  done = run(
    '--topology=cpu:16',
    f'--workdir={tmp_path}/run',
    '--config.model.depth=16',
    '--config.mesh.data=2',
    '--config.mesh.fsdp=4',
    '--config.mesh.tensor=2',
    *PLAIN,
  )
  assert done.returncode == 0, done.stderr
  assert 'rror' not in done.stderr
  assert done.stdout.splitlines()[-1].startswith('fits: peak')
  with open(tmp_path / 'run' / 'compile.json', encoding='utf-8') as file:
    summary = json.load(file)
  assert summary['mesh'] == {'data': 2, 'fsdp': 4, 'tensor': 2}
  assert os.listdir(tmp_path / 'run') == ['compile.json']
  # The table has the bytes per device of every array of the state.
  row = next(
    line
    for line in summary['sharding'].splitlines()
    if line.startswith('params/blocks/R ')
  )
  assert row.split()[-1] == f'{16 * 4 * 16 * 4 // 16:,}'  # At α = 1/16.
  assert row.split('  ')[0] in done.stdout
  memory = summary['memory']
  # Moments of R, M and Q are skew and packed: half the size.
  assert 2 * memory['optimizer'] >= memory['parameters'] > 0
  assert memory['peak'] >= memory['parameters'] + memory['optimizer']


@pytest.fixture
def plain_config(make_tiny_config):
  config = make_tiny_config()
  config.optimizer.name = 'momentum'
  config.optimizer.lookahead_period = 0
  config.optimizer.retraction_period = '0 steps'
  return config


@pytest.fixture
def fail_with(monkeypatch):
  """Lets the compiler fail with a message."""

  def plant(message):
    def fail(*args, **kwargs):
      raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)

  return plant


def test_a_program_that_is_too_large_ends_with_code_3(
  plain_config, fail_with, capsys
):
  fail_with(
    'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
    'in memory space hbm. Used 22.65G of 15.75G hbm. Exceeded hbm capacity '
    'by 6.90G.\n\nTotal hbm usage >= 22.91G:\n'
  )
  assert compile_lib.run(plain_config, 'cpu:1', None) == 3
  assert capsys.readouterr().out.endswith(
    'does not fit: Used 22.65G of 15.75G hbm. Exceeded hbm capacity by 6.90G.\n'
  )


def test_other_errors_of_a_compiler_are_not_hidden(plain_config, fail_with):
  fail_with('INTERNAL: a bug')
  with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
    compile_lib.run(plain_config, 'cpu:1', None)


def test_a_mesh_that_does_not_match_is_refused(make_tiny_config):
  config = make_tiny_config()
  config.mesh.data = 3
  with pytest.raises(errors.ConfigError, match='4 devices'):
    compile_lib.run(config, 'cpu:4', None)


ACCELERATORS = {'tpu': 'v5e:2x2', 'cuda': 'h100:1x1x4'}


@pytest.mark.parametrize('platform', ACCELERATORS)
def test_compiling_for_accelerators_that_need_not_exist(platform, tmp_path):
  extra = topology.missing_extra(platform)
  if extra:
    pytest.skip(f"needs the extra '{extra}'")
  flags = [f'--topology={ACCELERATORS[platform]}', f'--workdir={tmp_path}']
  flags += ['--config.mesh.data=1', '--config.mesh.fsdp=4', *PLAIN]
  flags += ['--config.model.depth=4', '--config.model.dtype=bfloat16']
  done = run(*flags, '--config.model.width=128')
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith('fits: peak')
  with open(tmp_path / 'compile.json', encoding='utf-8') as file:
    summary = json.load(file)
  counts = {(c['kind'], c['dtype']): c['count'] for c in summary['collectives']}
  # R and M of every layer, in forward; backward may reuse those of 4 layers.
  assert counts['all-gather', 'bf16'] >= 2 * 4
  swaps = sum(n for (kind, _), n in counts.items() if kind == 'all-to-all')
  assert swaps == 4
  # A batch that the chip cannot hold.
  done = run(*flags, '--config.model.width=4096', '--config.batch_size=8388608')
  assert done.returncode == 3, done.stderr
  assert done.stdout.splitlines()[-1].startswith('does not fit: ')
  assert 'Traceback' not in done.stderr
