"""The command line: in this process, and in real ones where one is needed."""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 (A run says so if it waits for it.)

from benchmarks import runs
from lipnext_jax import checkpoint
from lipnext_jax import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = (sys.executable, '-m', 'lipnext_jax.main')
DIGITS = '--config=configs/digits.py'
SMOKE = 'configs/digits.py:smoke'
RUN = (
  f'--config={SMOKE}',
  '--config.duration=80 steps',
  '--config.checkpoint.every=10 steps',
  '--config.eval.every=0 steps',
  '--config.log.every=4 steps',
)


# Flags → a part of the error.
MISTAKES = {
  '--config.model.dept=3': 'is not a config field; did you mean model.depth?',
  '--config.optimiser.name=adam': 'did you mean optimizer.name?',
  '--config.model.depth=deep': "config.model.depth='deep' is not of type int",
  '--config.model.patch_size=3': 'choose one of 1, 2, 4, 8',
  '--config.mesh.data=3': '8 devices',
  '--config.dataset.name=npz --config.dataset.data_dir=/no': 'does not exist',
  '--mode=config --config.model.beta=1.5': 'in [0, 1]',
  '--mode=eval': 'holds no checkpoint',
  '--mode=test': 'train|eval',
  '--topology=cpu:2': 'add --mode=compile',
  'extra': "argument='extra' is not a flag",
  '--config=': '--config',
  '--config=lipnext_jax:digit': 'is not a config of the package; choose',
  '--config=configs/none.py': "config='configs/none.py' is not a file",
}


def check_mistake(result, part):
  """Raises unless a result is one line with this part and exit code 2."""
  code, out, err = result
  assert (code, out) == (2, '')
  # A busy machine may say that it reads the data.
  line = re.fullmatch('(?:reading the data.*\n)*(error: .*)\n', err)[1]
  assert part in line


@pytest.mark.parametrize('flags', MISTAKES)
def test_a_mistake_is_one_line_exit_2_and_nothing_on_disk(
  flags, tmp_path, run_main
):
  result = run_main(DIGITS, f'--workdir={tmp_path}/run', *flags.split())
  check_mistake(result, MISTAKES[flags])
  assert not os.listdir(tmp_path)


def test_a_missing_workdir_or_config_is_named(run_main):
  check_mistake(run_main(DIGITS), '--workdir=None is missing')
  check_mistake(run_main('--config.seed=1'), '--config=None is missing')


def test_mode_config_prints_every_field(run_main):
  by_name = ['--config', 'lipnext_jax:digits', '--config.model.depth=3']
  code, out, err = run_main('--mode=config', *by_name)
  assert (code, err) == (0, '')
  assert '\nmodel.depth = 3  (default: 32)\n' in out


def test_an_installed_package_holds_its_configs_and_whatever_is_no_code(
  tmp_path, run_command
):
  build = ['setup.py', '-q', 'build', f'--build-base={tmp_path}']
  run_command([sys.executable, *build])
  built = tmp_path / 'lib'
  config = '--config=lipnext_jax:digits:model=bronet,smoke'
  done = run_command([*PROGRAM, '--mode=config', config], cwd=built)
  assert "\nmodel.name = 'bronet'" in done.stdout
  assert "\nduration = '2 steps'" in done.stdout

  def names(folder, pattern='**/*.*'):
    paths = (path.relative_to(folder) for path in folder.glob(pattern))
    return {path for path in paths if path.suffix != '.pyc'}

  source = names(ROOT / 'lipnext_jax') | names(ROOT, 'configs/*.py')
  assert names(built / 'lipnext_jax') == source


# ── What happens to runs ─────────────────────────────────────────────────────


def numbers(workdir):
  """Returns what an evaluation wrote."""
  names = ('eval.json', 'radii.csv')
  return [pathlib.Path(workdir, name).read_text() for name in names]


def complete(workdir, run_main, *flags):
  """Runs to the end; returns what was printed and what was written."""
  code, out, err = run_main(f'--workdir={workdir}', *RUN, *flags)
  assert not code, err
  return [out, *numbers(workdir)]


@pytest.fixture(scope='module')
def calm(tmp_path_factory, run_main):
  """(workdir, results) of an undisturbed run."""
  workdir = str(tmp_path_factory.mktemp('calm') / 'run')
  return workdir, complete(workdir, run_main)


def saved_steps(workdir):
  """Steps of the checkpoints, unfinished ones included."""
  folder = pathlib.Path(workdir, 'checkpoints')
  return [int(path.name.split('.')[0]) for path in folder.glob('*')]


def wait_for(condition, process):
  deadline = time.monotonic() + 200
  while not condition() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)


@pytest.mark.slow  # Three runs.
def test_signals_at_any_moment_end_in_the_same_numbers(
  tmp_path, calm, run_main
):
  """SIGTERM, SIGKILL (a save may be under way), then the same command."""
  workdir = f'{tmp_path}/run'
  metrics = pathlib.Path(workdir, 'metrics.jsonl')
  launch = functools.partial(
    runs.launch, SMOKE, workdir, *RUN[1:], stderr=subprocess.PIPE
  )
  process = launch()
  wait_for(metrics.exists, process)
  # The loop begins: the lock is held.
  with pytest.raises(errors.ConfigError, match=f'process {process.pid} on'):
    checkpoint.Lock(workdir).acquire()
  wait_for(lambda: metrics.stat().st_size, process)
  process.terminate()
  _, err = process.communicate(timeout=300)
  assert process.returncode == 143, err
  last = err.splitlines()[-1]
  step = int(re.search('error: stopped by SIGTERM; step ([0-9]+) ', last)[1])
  assert step in saved_steps(workdir)

  process = launch()
  wait_for(lambda: max(saved_steps(workdir)) >= step + 20, process)
  process.kill()
  process.communicate(timeout=300)
  assert process.returncode == -signal.SIGKILL
  assert max(saved_steps(workdir)) < 80

  assert complete(workdir, run_main) == calm[1]


@pytest.mark.slow  # Three runs.
def test_a_disk_that_is_full_is_one_line_and_costs_nothing(
  tmp_path, calm, run_main, run_command
):
  """A limit on the size of files stands for a full disk."""
  workdir = f'{tmp_path}/run'
  shutil.copytree(calm[0], workdir)
  shutil.rmtree(f'{workdir}/checkpoints/80')
  # A copy, since a cached program may be left half written.
  cache = f'{tmp_path}/cache'
  shutil.copytree(os.environ['JAX_COMPILATION_CACHE_DIR'], cache)
  for kibibytes, code, said in (
    (1, 7, ': File too large; what was saved before is '),
    (18, 4, 'a checkpoint could not be written (File too large)'),
  ):
    limited = ('bash', '-c', f'ulimit -f {kibibytes}; exec "$@"', 'limited')
    command = [*limited, *PROGRAM, f'--workdir={workdir}', *RUN]
    done = run_command(command, code=code, JAX_COMPILATION_CACHE_DIR=cache)
    last = done.stderr.splitlines()[-1]
    assert last.startswith('error: ')
    assert said in last
    assert re.search('intact: make room(,| or) permit writing', last)
    assert 70 in saved_steps(workdir)
  assert complete(workdir, run_main) == calm[1]


@pytest.mark.slow  # Two runs.
def test_two_seeds_differ_and_worker_processes_change_nothing(
  tmp_path, calm, run_main, run_command
):
  folders = calm[0], f'{tmp_path}/other'
  other = complete(folders[1], run_main, '--config.seed=1')
  assert all(a != b for a, b in zip(other, calm[1], strict=True))
  seen = [np.load(f'{folder}/inputs.npz')['training'] for folder in folders]
  assert not np.array_equal(*seen)  # The seed decides the order, too.
  workdir = f'{tmp_path}/run'
  flags = (f'--workdir={workdir}', *RUN, '--config.dataset.workers=2')
  done = run_command([*PROGRAM, *flags])
  assert 'Warning' not in done.stderr  # E.g. of leaked shared memory.
  assert [done.stdout, *numbers(workdir)] == calm[1]
