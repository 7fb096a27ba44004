"""Batches made ahead of time, by threads or by worker processes.

Worker processes are started anew (not forked), so that a program that uses them
needs parsed absl flags and an `if __name__ == '__main__'` around what it does,
as `lipnext_jax.main` has it. Batches come back through shared memory: Linux
keeps it in /dev/shm, which containers often limit.
"""

from collections.abc import Generator
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import grain
import numpy as np

from lipnext_jax import errors

# Batches that each process makes ahead. More would only cost memory: a batch
# of 1024 ImageNet images is 154 MB.
_AHEAD = 2
# Of the one process, or of each worker: those are many already. Pillow lets go
# of the interpreter lock where the time goes.
_THREADS, _THREADS_OF_WORKERS = 2, 1

# What a thread may take to release some batches; more than any should.
_RELEASE_S = 5.0

# What Grain says, in a RuntimeError, of a worker that is gone.
_DIED = 'terminated unexpectedly'


def iterate(
  batches: grain.MapDataset, workers: int
) -> Generator[dict[str, np.ndarray], None, None]:
  """The batches in order, made ahead of time.

  What they hold does not depend on `workers`: worker i makes every batch whose
  position is i modulo their number.

  Args:
    batches: what to compute; sent to the workers pickled.
    workers: worker processes; 0: threads of this one.

  Yields:
    The batches, in memory of this process. Closing the generator ends the
    workers.

  Raises:
    UserError: a worker that died, e.g. for want of memory. What a worker
      raises is raised here, whatever it is.

  >>> batches = grain.MapDataset.range(3).map(lambda i: {'x': np.full(2, i)})
  >>> [int(batch['x'].sum()) for batch in iterate(batches, workers=0)]
  [0, 2, 4]
  """
  dataset = batches.to_iter_dataset(
    grain.ReadOptions(
      num_threads=_THREADS_OF_WORKERS if workers else _THREADS,
      prefetch_buffer_size=_AHEAD,
    )
  )
  if not workers:
    with contextlib.closing(iter(dataset)) as iterator:
      yield from iterator
    return
  dataset = dataset.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers), _start_worker
  )
  latest: list[Any] = []
  try:
    yield from _copies(dataset, latest)
  except RuntimeError as error:
    if _DIED not in str(error):
      raise
    raise errors.UserError(
      f'a data worker process died ({str(error).split(". ")[0]}); it may '
      'have run out of memory, or of shared memory in /dev/shm: lower '
      f'dataset.workers={workers} or the batch size'
    ) from None
  finally:
    _await_release(latest)


def _copies(
  dataset: grain.IterDataset, latest: list[Any]
) -> Generator[dict[str, np.ndarray], None, None]:
  """Batches in memory of this process: JAX on CPU would keep shared memory.

  What is `latest` is the smallest array of the last batch, as Grain gave it.
  """
  with contextlib.closing(iter(dataset)) as iterator:
    for batch in iterator:
      latest[:] = [min(batch.values(), key=lambda value: value.nbytes)]
      batch = {name: np.array(value) for name, value in batch.items()}
      yield batch


def _await_release(latest: list[Any]) -> None:
  """Returns when the shared memory of all batches has been released.

  Grain leaves that to a thread, in the order in which batches are dropped: at
  the exit of the program the rest would be reported as leaked. So the latest
  goes last, after what a cycle of frames of Grain's iterators holds.
  """
  gc.collect()
  blocks = [v.shm for v in latest if type(v) is not np.ndarray]
  latest.clear()
  deadline = time.monotonic() + _RELEASE_S
  while any(block.buf is not None for block in blocks):
    if time.monotonic() > deadline:
      return
    time.sleep(0.001)


def _start_worker(index: int, count: int) -> None:
  """Ends this worker with its parent, and leaves signals to it.

  Clusters send SIGTERM to all processes of a job at once: the parent needs its
  workers up to the step after which it saves.
  """
  del index, count
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()  # Returns when it is gone, even if it was killed.
    os._exit(1)
