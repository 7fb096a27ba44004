"""The command line: in this process, and in real ones where one is needed."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import sklearn.datasets  # noqa: F401 (A run says so if it waits for it.)

from lipnext_jax import checkpoint
from lipnext_jax import errors

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = '--config=configs/digits.py'
TINY = (
  DIGITS,
  '--config.model.depth=2',
  '--config.model.width=16',
  '--config.batch_size=32',
  '--config.optimizer.warmup=1 steps',
)
LONGER = (
  *TINY,
  '--config.duration=80 steps',
  '--config.checkpoint.every=10 steps',
  '--config.eval.every=0 steps',
  '--config.log.every=4 steps',
)


def start(*flags, prefix=(), cwd=ROOT, **env):
  """Starts `python -m lipnext_jax.main`."""
  return subprocess.Popen(
    [*prefix, sys.executable, '-m', 'lipnext_jax.main', *flags],
    cwd=cwd,
    env=os.environ | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """Returns (exit code, stdout, stderr) of a process, once it has ended."""
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


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
  (line,) = re.sub(
    '^reading the data.*\n', '', err, flags=re.MULTILINE
  ).splitlines()
  assert line.startswith('error: ')
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


@pytest.mark.slow  # It starts a program.
def test_the_real_program_says_the_same():
  check_mistake(
    finish(start(DIGITS, '--workdir=x', '--coordinator=auto')),
    "--coordinator='auto' finds no cluster here",
  )


def test_mode_config_prints_every_field(run_main):
  by_name = ['--config', 'lipnext_jax:digits', '--config.model.depth=3']
  code, out, err = run_main('--mode=config', *by_name)
  assert (code, err) == (0, '')
  assert '\nmodel.depth = 3  (default: 32)\n' in out


@pytest.mark.slow  # It starts programs.
def test_an_installed_package_holds_its_configs_and_whatever_is_no_code(
  tmp_path, run_command
):
  build = ['setup.py', '-q', 'build', f'--build-base={tmp_path}']
  assert run_command([sys.executable, *build]).returncode == 0
  built = tmp_path / 'lib'
  flags = '--mode=config', '--config=lipnext_jax:digits:model=bronet,smoke'
  code, out, err = finish(start(*flags, cwd=built))
  assert code == 0, err
  assert "\nmodel.name = 'bronet'" in out
  assert "\nduration = '2 steps'" in out
  copied, own = (
    {
      path.relative_to(folder)
      for path in folder.rglob('*.*')
      if path.suffix != '.pyc' and path.is_file()
    }
    for folder in (built / 'lipnext_jax', ROOT / 'lipnext_jax')
  )
  assert copied == own | {
    path.relative_to(ROOT) for path in ROOT.glob('configs/*.py')
  }


# ── What happens to runs ─────────────────────────────────────────────────────


@pytest.fixture(scope='module')
def calm(tmp_path_factory, run_main):
  """(workdir, stdout) of an undisturbed run."""
  workdir = str(tmp_path_factory.mktemp('calm') / 'run')
  code, out, err = run_main(f'--workdir={workdir}', *LONGER)
  assert not code, err
  assert 'digits, test split' in out
  return workdir, out


def check_same_numbers(workdir, calm, run_main):
  """Finishes a run and compares it with the undisturbed one."""
  code, out, err = run_main(f'--workdir={workdir}', *LONGER)
  assert not code, err
  assert out == calm[1]
  for name in ('eval.json', 'radii.csv'):
    own, other = (pathlib.Path(w, name).read_text() for w in (workdir, calm[0]))
    assert own == other, name


def saved_steps(workdir):
  """Steps of the checkpoints, unfinished ones included."""
  folder = os.path.join(workdir, 'checkpoints')
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return [int(name.split('.')[0]) for name in names]


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
  flags = (f'--workdir={workdir}', *LONGER)
  metrics = pathlib.Path(workdir, 'metrics.jsonl')

  process = start(*flags)
  wait_for(metrics.exists, process)
  # The loop begins: the lock is held.
  with pytest.raises(errors.ConfigError, match=f'process {process.pid} on'):
    checkpoint.Lock(workdir).acquire()
  wait_for(lambda: metrics.stat().st_size, process)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process)
  assert code == 143, err
  last = err.splitlines()[-1]
  assert 'error: stopped by SIGTERM; step ' in last
  step = int(last.split('; step ')[1].split()[0])
  assert step in saved_steps(workdir)

  process = start(*flags)
  wait_for(lambda: max(saved_steps(workdir)) >= step + 20, process)
  process.kill()
  assert finish(process)[0] == -signal.SIGKILL
  assert max(saved_steps(workdir)) < 80
  check_same_numbers(workdir, calm, run_main)


@pytest.mark.slow  # Three runs.
def test_a_disk_that_is_full_is_one_line_and_costs_nothing(
  tmp_path, calm, run_main
):
  """A limit on the size of files stands for a full disk."""
  workdir = f'{tmp_path}/run'
  shutil.copytree(calm[0], workdir)
  shutil.rmtree(f'{workdir}/checkpoints/80')
  cache = shutil.copytree(
    os.environ['JAX_COMPILATION_CACHE_DIR'], tmp_path / 'c'
  )
  for kibibytes, code, said in (
    (1, 7, ': File too large; what was saved before is '),
    (18, 4, 'a checkpoint could not be written (File too large)'),
  ):
    limited = ('bash', '-c', f'ulimit -f {kibibytes}; exec "$@"', 'limited')
    full = start(
      f'--workdir={workdir}',
      *LONGER,
      prefix=limited,
      # A copy, since a cached program may be left half written.
      JAX_COMPILATION_CACHE_DIR=str(cache),
    )
    found, _, err = finish(full)
    assert found == code, err
    last = err.splitlines()[-1]
    assert last.startswith('error: ')
    assert said in last
    assert re.search('intact: make room(,| or) permit writing', last)
    assert 70 in saved_steps(workdir)
  check_same_numbers(workdir, calm, run_main)


@pytest.mark.slow  # Two runs.
def test_two_seeds_differ_and_worker_processes_change_nothing(
  tmp_path, calm, run_main
):
  other, same = tmp_path / 'other', tmp_path / 'same'
  code, _, err = run_main(*LONGER, f'--workdir={other}', '--config.seed=1')
  assert not code, err
  workers = '--config.dataset.workers=2'
  code, _, err = finish(start(*LONGER, f'--workdir={same}', workers))
  assert code == 0, err
  assert 'Warning' not in err  # E.g. of leaked shared memory.
  assert radii(other) != radii(same) == radii(calm[0])


def radii(workdir):
  return pathlib.Path(workdir, 'radii.csv').read_text()
