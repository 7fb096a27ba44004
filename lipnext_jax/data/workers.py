"""Makes batches ahead of time, in threads or in worker processes.

Worker processes are started anew (not forked), so that a program that uses them
needs parsed absl flags and an `if __name__ == '__main__'` around what it does,
as `lipnext_jax.main` has it.
"""

from collections.abc import Generator
import contextlib
import signal

import grain
import numpy as np

from lipnext_jax import errors
from lipnext_jax.data import processes

# Batches that each process makes ahead. More would only cost memory: a batch
# of 1024 ImageNet images is 154 MB.
_AHEAD = 2
# Threads of this process, or of each worker: there are many of those already.
# Pillow releases the interpreter lock where the time goes.
_THREADS, _THREADS_OF_WORKERS = 2, 1
# Batches come back through pipes. Grain would use shared memory, releases it in
# a background thread, and leaks it if the program ends before that has run.
_NO_SHARED_MEMORY = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
# What Grain says, in a RuntimeError, of a worker that is gone.
_DIED = 'terminated unexpectedly'


def iterate(
  batches: grain.MapDataset, workers: int
) -> Generator[dict[str, np.ndarray], None, None]:
  """Yields the batches in order, made ahead of time.

  They do not depend on `workers`: worker i makes every batch whose position is
  i modulo their number.

  Args:
    batches: what to compute; sent to the workers pickled.
    workers: worker processes; 0: threads of this process.

  Yields:
    The batches. Closing the generator ends the workers.

  Raises:
    UserError: a worker died, e.g. for want of memory. What a worker raises is
      raised here, whatever it is.

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
  if workers:
    dataset = grain.experimental.WithOptionsIterDataset(
      dataset, _NO_SHARED_MEMORY
    ).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers), _start_worker
    )
  try:
    with contextlib.closing(iter(dataset)) as iterator:
      yield from iterator
  except RuntimeError as error:
    if _DIED not in str(error):
      raise
    raise errors.UserError(
      f'a data worker process died ({str(error).split(". ")[0]}); it may '
      f'have run out of memory: lower dataset.workers={workers} or the batch '
      'size'
    ) from None


def _start_worker(index: int, count: int) -> None:
  """Leaves signals to the parent, which needs data up to its next save."""
  del index, count
  processes.end_with_parent(signal.SIGINT, signal.SIGTERM)
