from concurrent import futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

from benchmarks import corruption
from benchmarks import runs
from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax.parallel import distributed


def test_flags_or_the_environment_say_where_a_process_belongs(monkeypatch):
  for place in (None, 2, 0), ('auto', 2, 0), ('a:1', None, None), ('a:1', 2, 2):
    with pytest.raises(errors.ConfigError, match='--coordinator'):
      distributed.start(*place)
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args, **_: calls.append(args)
  )
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'first:8476')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  with pytest.raises(errors.ConfigError, match=r'None\) .*JAX_PROCESS_ID'):
    distributed.start('env', None, None)
  monkeypatch.setenv('JAX_PROCESS_ID', '3')
  distributed.start('env', None, None)
  assert calls == [('first:8476', 4, 3)]


FLAGS = (
  '--config=configs/digits.py:smoke',
  '--config.duration=80 steps',
  '--config.checkpoint.every=10 steps',
  '--config.eval.every=0 steps',
  '--config.log.every=5 steps',
  '--config.mesh.data=2',
  '--config.mesh.fsdp=2',
  # Momentum is linear in the gradient and keeps rounding errors small.
  '--config.optimizer.name=momentum',
)


def launch(workdir):
  return subprocess.Popen(
    ['bash', 'launch/local.sh', '2', f'--workdir={workdir}', *FLAGS],
    cwd=pathlib.Path(__file__).parent.parent.parent,
    env=os.environ | {'PYTHON': sys.executable, 'DEVICES': '4'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(workdir):
  process = launch(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  assert out.count('digits, test split') == 1  # Of process 0.


def last_checkpoint(workdir):
  return max(checkpoint.CheckpointReader(str(workdir)).list_steps(), default=0)


def end(workdir, reached, signum, which):
  """Signals process `which`, or the launcher if None, once `reached` is saved.

  Returns the launcher's exit code, its stderr, and the seconds to its end.
  """
  process = launch(workdir)
  deadline = time.monotonic() + 200
  while last_checkpoint(workdir) < reached:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  target = psutil.Process(process.pid)
  if which is not None:
    own = f'--process_id={which}'
    (target,) = (c for c in target.children() if own in c.cmdline())
  target.send_signal(signum)
  begin = time.monotonic()
  _, stderr = process.communicate(timeout=300)
  return process.returncode, stderr, time.monotonic() - begin


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
  """The workdir of a run of two processes, its parameters split over both."""
  workdir = tmp_path_factory.mktemp('runs') / 'calm'
  finish(workdir)
  return workdir


@pytest.mark.slow  # A launch of two processes, and one more.
def test_two_processes_make_the_run_of_one(calm, tmp_path, run_command):
  """Compares two processes with one process of the same 4 devices.

  Processes interleave the examples of a batch, so that sums round differently:
  by some 1e-7 a step, on radii of order 0.1.
  """
  one = tmp_path / 'one'
  devices = '--xla_force_host_platform_device_count=4'
  run_command(
    [sys.executable, '-m', 'lipnext_jax.main', f'--workdir={one}', *FLAGS],
    XLA_FLAGS=f'{os.environ["XLA_FLAGS"]} {devices}',
  )
  single, found = (
    json.loads((workdir / 'eval.json').read_text()) for workdir in (one, calm)
  )
  assert found['clean'] == pytest.approx(single['clean'], abs=100 / 360)
  own, other = (
    np.loadtxt(workdir / 'radii.csv', delimiter=',', skiprows=1)
    for workdir in (calm, one)
  )
  assert own.shape == other.shape == (360, 4)
  np.testing.assert_array_equal(own[:, :2], other[:, :2])  # Images and labels.
  np.testing.assert_allclose(own[:, 3], other[:, 3], atol=1e-4)
  (start,) = json.loads((calm / 'run.json').read_text())
  assert start['devices']['processes'] == 2


@pytest.mark.slow  # Four launches of two processes.
def test_a_process_that_is_killed_ends_the_other_and_costs_nothing(
  calm, tmp_path
):
  """Kills either process, then stops both; numbers end the same, bit for bit.

  The other process is ended by JAX's coordination service, by Gloo, or by a
  failing collective, which alone is reported in one line. The launcher's line
  is last.
  """
  ended = tmp_path / 'ended'
  for which, reached in ((1, 10), (0, 20)):
    code, stderr, seconds = end(ended, reached, signal.SIGKILL, which)
    assert code == 137, stderr
    assert seconds < 60
    last = stderr.splitlines()[-1]
    assert last.startswith('error: a process was ended by signal 9; the same')
    said = f'process {1 - which} of 2: another one is gone'
    ways = (said, 'another task died', 'collective mismatch in your code')
    assert any(way in stderr for way in ways), stderr
    assert 'Traceback' not in stderr
    assert 'most recent call first' not in stderr
  code, stderr, _ = end(ended, 30, signal.SIGTERM, None)
  assert code == 143, stderr
  assert stderr.count('error: stopped by SIGTERM; step ') == 2
  assert 30 <= last_checkpoint(ended) < 80
  finish(ended)
  for name in ('eval.json', 'radii.csv'):
    assert (ended / name).read_text() == (calm / name).read_text()
  assert last_checkpoint(calm) == last_checkpoint(ended) == 80
  abstract = corruption.abstract_state(str(calm))
  own, other = (
    checkpoint.CheckpointReader(str(workdir)).restore(80, abstract)
    for workdir in (ended, calm)
  )
  assert runs.same_arrays(jax.tree.leaves(own), jax.tree.leaves(other))


OTHERS = """
import sys
from lipnext_jax import errors
from lipnext_jax.parallel import distributed
distributed.start(sys.argv[1], 2, int(sys.argv[2]))
def fail():
  raise errors.ConfigError('--workdir', 'here', 'is not shared', 'share it')
distributed.on_others(lambda: None)
try:
  distributed.on_others(fail)
except errors.UserError as error:
  print(error)
"""


def test_what_fails_in_another_process_fails_in_all(run_command):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    place = f'127.0.0.1:{s.getsockname()[1]}'
  command = [sys.executable, '-c', OTHERS, place]
  with futures.ThreadPoolExecutor() as pool:
    first, other = pool.map(lambda i: run_command([*command, i]), ['0', '1'])
  # Messages of Gloo come before it.
  last = [done.stdout.splitlines()[-1] for done in (first, other)]
  assert last == [
    'process 1 failed; its message says why',
    "--workdir='here' is not shared; share it.",
  ]
