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


def test_workers_outlive_signals_and_a_killed_one_is_an_error():
  """In order before, no hang at it, and none of the others stay.

  Clusters send SIGTERM to all: the last step before a save needs data.
  """
  counting = grain.MapDataset.range(2**40).map(lambda i: {'x': np.full(3, i)})
  with contextlib.closing(workers.iterate(counting, 2)) as batches:
    for i in range(2):  # Both have started.
      assert next(batches)['x'].tolist() == [i] * 3
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
    assert time.monotonic() - start < 30
  assert not multiprocessing.active_children()


def test_a_program_that_ends_at_once_leaks_no_shared_memory():
  """It has none, even of endless batches that nobody takes.

  The long switch interval gives no background thread a turn: with Grain's
  shared memory, runs ended in Python's warning that some was leaked.
  """
  script = """
import os, sys
from absl import app
import grain, numpy as np
from lipnext_jax.data import workers
def main(argv):
  sys.setswitchinterval(1.)
  before = set(os.listdir('/dev/shm'))
  ds = grain.MapDataset.range(2**40).map(
    lambda i: {'x': np.full(99_999, i), 'y': np.full(3, i)})
  batches = workers.iterate(ds, 2)
  total = sum(int(next(batches)['y'][0]) for _ in range(7))
  new = set(os.listdir('/dev/shm')) - before
  print(total, [name for name in new if name.startswith('psm_')])
if __name__ == '__main__':
  app.run(main)
"""
  done = subprocess.run(
    (sys.executable, '-c', script),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.stdout == '21 []\n', done.stderr
  assert not done.stderr
