import contextlib
import itertools
import multiprocessing
import os
import signal
import sys

import grain
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import workers


@pytest.mark.parametrize('end', ['', 'os.kill(os.getpid(), signal.SIGKILL)'])
def test_workers_end_with_their_program(end, run_command):
  """No process that still holds the pipes, no message, no shared memory."""
  code = f"""
import os, signal
import grain, numpy as np
from lipnext_jax.data import workers
if __name__ == '__main__':
  endless = grain.MapDataset.range(2**40).map(
    lambda i: {{'x': np.full(99_999, i), 'y': np.full(3, i)}}
  )
  batches = workers.iterate(endless, 2)
  print(sum(int(next(batches)['y'][0]) for _ in range(7)), flush=True)
  {end}
"""
  done = run_command([sys.executable, '-c', code], code=None)
  assert (done.stdout, done.stderr) == ('21\n', '')


def test_errors_pass_through_workers_with_their_messages():
  def fail(_):
    raise errors.DataError('a damaged image')

  batches = workers.iterate(grain.MapDataset.range(4).map(fail), 1)
  with pytest.raises(errors.DataError, match='a damaged image') as caught:
    next(batches)
  assert 'in fail' in caught.value.__notes__[-1]


def test_workers_outlive_signals_and_a_killed_one_is_an_error():
  """Clusters signal all processes, but the last step before a save needs data.

  A batch is larger than a pipe, which would keep hundreds of small ones.
  """
  endless = grain.MapDataset.range(2**40)
  counting = endless.map(lambda i: {'x': np.full(2**15, i)})
  with contextlib.closing(workers.iterate(counting, 2)) as batches:
    for i in range(2):  # Both have started.
      batch = next(batches)['x']
      assert type(batch) is np.ndarray
      assert np.array_equal(batch, np.full(2**15, i))
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    for process in processes:
      process.terminate()  # SIGTERM.
      os.kill(process.pid, signal.SIGINT)
    found = [int(b['x'][0]) for b in itertools.islice(batches, 40)]
    assert found == list(range(2, 42))
    processes[0].kill()
    with pytest.raises(errors.UserError, match=r'worker process died.*-9'):
      list(itertools.islice(batches, 50))  # What is in the queues still comes.
  assert not multiprocessing.active_children()
