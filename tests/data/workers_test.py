"""What ends worker processes; tests/main_test.py uses them as users do."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

from absl import flags
import grain
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import workers

ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.fixture(autouse=True)
def _parsed_flags():
  flags.FLAGS.mark_as_parsed()  # Grain wants that before it starts workers.


def count_up():
  """Endless batches: 0, 1, 2, …"""
  return grain.MapDataset.range(2**40).map(lambda i: {'x': np.full(3, i)})


def test_a_killed_worker_is_an_error_and_leaves_none_behind():
  """In order before, no hang at it, and none of the others stay."""
  with contextlib.closing(workers.iterate(count_up(), 2)) as batches:
    for i in range(5):
      batch = next(batches)['x']
      assert type(batch) is np.ndarray  # Not a view of shared memory.
      assert batch.tolist() == [i] * 3
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    os.kill(processes[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(errors.UserError, match=r'worker process died.*-9'):
      list(itertools.islice(batches, 50))  # What is in the queues still comes.
    assert time.monotonic() - start < 30
  assert not multiprocessing.active_children()


def test_workers_end_with_a_parent_that_is_killed():
  script = """
import multiprocessing, sys, time
from absl import app
import grain, numpy as np
from lipnext_jax.data import workers
def main(argv):
  ds = grain.MapDataset.range(2**40).map(lambda i: {'x': np.full(3, i)})
  batches = workers.iterate(ds, 1)
  next(batches)
  print(len(multiprocessing.active_children()) * 'one worker', flush=True)
  time.sleep(60)
if __name__ == '__main__':
  app.run(main)
"""
  parent = subprocess.Popen(
    (sys.executable, '-c', script),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert parent.stdout.readline() == 'one worker\n'
  parent.kill()
  # The worker holds the pipe too: it closes when that is gone.
  parent.communicate(timeout=30)


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_workers_at_work(signum):
  """Clusters send SIGTERM to all: the last step before a save needs data."""
  with contextlib.closing(workers.iterate(count_up(), 2)) as batches:
    assert next(batches)['x'][0] == 0
    assert next(batches)['x'][0] == 1  # Both have started.
    for process in multiprocessing.active_children():
      os.kill(process.pid, signum)
    found = [int(b['x'][0]) for b in itertools.islice(batches, 40)]
    assert found == list(range(2, 42))
  assert not multiprocessing.active_children()


def test_a_program_that_ends_at_once_leaks_no_shared_memory():
  """Grain's thread that releases it gets no turn unless it is waited for.

  The long switch interval makes that so: of six runs without the wait, five
  ended in Python's warning of leaked shared memory.
  """
  script = """
import sys
from absl import app
import grain, numpy as np
from lipnext_jax.data import workers
def main(argv):
  sys.setswitchinterval(1.)
  ds = grain.MapDataset.range(7).map(
    lambda i: {'x': np.full(99, i), 'y': np.full(3, i)})
  print(sum(int(batch['y'][0]) for batch in workers.iterate(ds, 2)))
if __name__ == '__main__':
  app.run(main)
"""
  for _ in range(3):
    done = subprocess.run(
      (sys.executable, '-c', script),
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.stdout == '21\n', done.stderr
    assert not done.stderr
