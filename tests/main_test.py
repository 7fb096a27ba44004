"""The real command line, in real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lipnext_jax import errors
from lipnext_jax.checkpoint import lock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = (
  '--config.model.depth=2',
  '--config.model.width=16',
  '--config.batch_size=32',
  '--config.optimizer.warmup=1 steps',
)


def command(*flags, config='configs/digits.py'):
  head = [sys.executable, '-m', 'lipnext_jax.main']
  return [*head, *([f'--config={config}'] if config else []), *flags]


def run(*flags, config='configs/digits.py', timeout=300):
  return subprocess.run(
    command(*flags, config=config),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


MISTAKES = {
  'an unknown field': (
    ['--config.model.dept=3'],
    ['--config.model.dept', "'3'", 'did you mean model.depth'],
  ),
  'a wrong type': (
    ['--config.model.depth=deep'],
    ['config.model.depth=deep', 'invalid literal'],
  ),
  'too many shifted channels': (
    ['--config.model.shift_ratio=0.3'],
    ['model.shift_ratio=0.3', 'at most 0.25'],
  ),
  'beta outside its range': (
    ['--config.model.beta=1.5'],
    ['model.beta=1.5', '[0, 1]'],
  ),
  'a patch that does not divide the image': (
    ['--config.model.patch_size=3'],
    ['model.patch_size=3', 'choose one of 1, 2, 4, 8'],
  ),
  'a mesh that does not match the devices': (
    ['--config.mesh.data=3'],
    ['mesh', "'data': 3", '8 devices'],
  ),
  'a missing data directory': (
    ['--config.dataset.name=npz', '--config.dataset.data_dir=/no/where'],
    ['dataset.data_dir', '/no/where', 'is no directory'],
  ),
  'no checkpoint to evaluate': (
    ['--mode=eval'],
    ['--workdir', 'holds no checkpoint', '--mode=train'],
  ),
  'an unknown mode': (['--mode=test'], ['mode=test', 'train|eval']),
  'an unknown flag': (['--wordir=x'], ['wordir']),
  'a stray argument': (['extra'], ['extra', 'is no flag']),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_nothing_on_disk(mistake, tmp_path):
  flags, parts = MISTAKES[mistake]
  result = run(f'--workdir={tmp_path}/run', *flags)
  assert result.returncode == 2, result.stderr
  lines = result.stderr.splitlines()
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith('error: ')
  for part in parts:
    assert part in lines[0]
  assert not result.stdout
  assert not os.listdir(tmp_path)


def test_missing_flags_and_files_are_named(tmp_path):
  result = run(f'--workdir={tmp_path}', config=None)
  assert result.returncode == 2
  assert '--config' in result.stderr
  result = run(f'--workdir={tmp_path}', config='configs/none.py')
  assert result.returncode == 2
  assert 'configs/none.py' in result.stderr
  assert len(result.stderr.splitlines()) == 1
  result = run()
  assert result.returncode == 2
  assert '--workdir' in result.stderr


def read_json(path):
  with open(path, encoding='utf-8') as file:
    return json.load(file)


LONGER = (
  *TINY,
  '--config.duration=120 steps',
  '--config.checkpoint.every=10 steps',
  '--config.eval.every=0 steps',
  '--config.log.every=5 steps',
)


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
  """(workdir, stdout) of a run that nothing disturbed."""
  workdir = str(tmp_path_factory.mktemp('calm') / 'run')
  done = run(f'--workdir={workdir}', *LONGER)
  assert done.returncode == 0, done.stderr
  assert 'digits, test split' in done.stdout
  return workdir, done.stdout


def check_same_numbers(workdir, calm):
  last = run(f'--workdir={workdir}', *LONGER)
  assert last.returncode == 0, last.stderr
  assert last.stdout == calm[1]
  for name in ('eval.json', 'radii.csv'):
    with open(f'{workdir}/{name}') as a, open(f'{calm[0]}/{name}') as b:
      assert a.read() == b.read(), name


def test_sigterm_saves_and_a_second_run_is_kept_out(tmp_path, calm):
  workdir = f'{tmp_path}/run'
  process = subprocess.Popen(
    # Many more steps than can be done before the signal.
    command(f'--workdir={workdir}', *LONGER),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )
  deadline = time.monotonic() + 200
  while not os.path.exists(f'{workdir}/metrics.jsonl'):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.01)
  # The loop is about to begin or has begun: the lock is held, and stays so.
  other = lock.Lock(workdir)
  with pytest.raises(errors.ConfigError, match=f'process {process.pid} on'):
    other.acquire()
  while process.poll() is None and not os.path.getsize(
    f'{workdir}/metrics.jsonl'
  ):
    time.sleep(0.002)
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 143, stderr
  last = stderr.splitlines()[-1]
  assert 'error: stopped by SIGTERM; step ' in last
  step = int(last.split('; step ')[1].split()[0])
  assert str(step) in os.listdir(f'{workdir}/checkpoints')
  check_same_numbers(workdir, calm)


@pytest.mark.parametrize(
  ('kibibytes', 'code', 'parts'),
  [
    (1, 7, [': File too large; what was saved before is ']),
    (18, 4, ['a checkpoint could not be written (File too large)']),
  ],
)
def test_a_disk_that_is_full_is_one_line_and_costs_nothing(
  tmp_path, calm, kibibytes, code, parts
):
  """No file may grow beyond the limit: what a full disk does, for anyone."""
  workdir = f'{tmp_path}/run'
  shutil.copytree(calm[0], workdir)
  shutil.rmtree(f'{workdir}/checkpoints/120')
  full = subprocess.run(
    [
      *('bash', '-c', f'ulimit -f {kibibytes}; exec "$@"', 'limited'),
      *command(f'--workdir={workdir}', *LONGER),
    ],
    cwd=ROOT,
    # A program that cannot be cached warns of it.
    env=os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert full.returncode == code, full.stderr
  last = full.stderr.splitlines()[-1]
  assert last.startswith('error: ')
  for part in (*parts, 'intact: make room or permit writing'):
    assert part in last
  assert '110' in os.listdir(f'{workdir}/checkpoints')
  check_same_numbers(workdir, calm)


def test_sigkill_at_any_moment_ends_in_the_same_numbers(tmp_path, calm):
  """Three kills (before, between and during saves), then the same command."""
  flags = LONGER
  workdir = f'{tmp_path}/killed'
  saved = os.path.join(workdir, 'checkpoints')
  kills = 0
  for wanted in (0, 1, 2):  # Finished checkpoints to wait for, at least.
    process = subprocess.Popen(
      command(f'--workdir={workdir}', *flags),
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    reached = [10, 30, 60][wanted]
    while process.poll() is None and time.monotonic() < deadline:
      names = os.listdir(saved) if os.path.isdir(saved) else []
      steps = [int(name.split('.')[0]) for name in names]
      if steps and max(steps) >= reached:  # A save may be under way.
        process.send_signal(signal.SIGKILL)
        kills += 1
        break
      time.sleep(0.002)
    process.wait()
  assert kills >= 1  # A fast machine may finish before the later ones.
  check_same_numbers(workdir, calm)


def test_two_seeds_differ_and_worker_processes_change_nothing(tmp_path):
  radii = []
  for flag in (
    '--config.seed=0',
    '--config.seed=1',
    '--config.dataset.workers=2',
  ):
    workdir = f'{tmp_path}/{len(radii)}'
    done = run(
      *TINY,
      '--config.duration=3 steps',
      flag,
      f'--workdir={workdir}',
    )
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr  # E.g. of leaked shared memory.
    with open(f'{workdir}/radii.csv') as file:
      radii.append(file.read())
  assert radii[0] != radii[1]
  assert radii[0] == radii[2]
