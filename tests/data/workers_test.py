"""Tests how worker processes end; tests/main_test.py trains with them."""

import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback

import grain
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import workers

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Seconds. Three processes import Grain, on a machine that others may keep busy.
HANG = 300


def run(script):
  """Runs the body of a program, in which `batches` are endless."""
  program = f"""
import grain, numpy as np, time
from lipnext_jax.data import workers
if __name__ == '__main__':
  ds = grain.MapDataset.range(2**40).map(
    lambda i: {{'x': np.full(99_999, i), 'y': np.full(3, i)}})
  batches = workers.iterate(ds, 2)
{script}
"""
  return subprocess.Popen(
    (sys.executable, '-c', program),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_workers_end_with_a_parent_that_is_killed():
  both = ' '.join(2 * ['next(batches)["y"][0],'])
  with run(f'  print({both} flush=True); time.sleep({HANG})') as parent:
    assert parent.stdout.readline() == '0 1\n'
    parent.kill()
    # The workers hold the pipes, too: they close when these are gone.
    assert parent.communicate(timeout=HANG) == ('', '')


def test_a_program_that_ends_at_once_leaves_nothing_behind():
  """No process to wait for, and no shared memory."""
  with run(
    '  print(sum(int(next(batches)["y"][0]) for _ in range(7)))'
  ) as done:
    assert done.communicate(timeout=HANG) == ('21\n', '')


def test_errors_pass_through_workers_with_their_messages():
  for count, make_error, wanted, message in (
    (0, lambda: TypeError('a bug'), TypeError, 'a bug'),
    (1, lambda: TypeError('a bug'), TypeError, 'a bug'),
    # Its pickle does not load, as its `__init__` takes other arguments.
    (
      1,
      lambda: errors.NonFiniteError(7, 'loss is NaN', None),
      errors.UserError,
      r'raised NonFiniteError \(step 7: loss is NaN; .*workers=0 shows where',
    ),
    # A lock has no pickle, and the broken pipe is not that of the batches.
    (
      1,
      lambda: BrokenPipeError('cut', threading.Lock()),
      errors.UserError,
      r'raised BrokenPipeError \(.*cut.* _thread.lock',
    ),
  ):

    def fail(_, make_error=make_error):
      raise make_error()

    batches = workers.iterate(grain.MapDataset.range(4).map(fail), count)
    with pytest.raises(wanted, match=message) as caught:
      next(batches)
    assert 'in fail' in ''.join(traceback.format_exception(caught.value))


def test_workers_outlive_signals_and_a_killed_one_is_an_error():
  """Batches stay in order, nothing hangs, and all workers end.

  Clusters send SIGTERM to all processes, but the last step before a save needs
  data. A batch is larger than a pipe, which would keep hundreds of small ones.
  """
  counting = grain.MapDataset.range(2**40).map(
    lambda i: {'x': np.full(2**15, i)}
  )
  with contextlib.closing(workers.iterate(counting, 2)) as batches:
    for i in range(2):  # Both have started.
      batch = next(batches)['x']
      assert type(batch) is np.ndarray
      assert np.array_equal(batch, np.full(2**15, i))
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    for process, signum in itertools.product(
      processes, (signal.SIGTERM, signal.SIGINT)
    ):
      os.kill(process.pid, signum)
    found = [int(b['x'][0]) for b in itertools.islice(batches, 40)]
    assert found == list(range(2, 42))
    os.kill(processes[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(errors.UserError, match=r'worker process died.*-9'):
      list(itertools.islice(batches, 50))  # What is in the queues still comes.
    assert time.monotonic() - start < HANG
  assert not multiprocessing.active_children()
