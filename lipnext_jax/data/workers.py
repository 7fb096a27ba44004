"""Makes batches ahead of time, in threads or in worker processes.

Worker processes are spawned, not forked: a program that uses them runs its code
under `if __name__ == '__main__'`. Batches come back through pipes instead of
shared memory, which containers often limit, and which leaks if a program ends
at the wrong moment.
"""

from collections.abc import Generator
import contextlib
import itertools
import multiprocessing
from multiprocessing import connection
from multiprocessing import util
import pickle
import signal
import traceback
from typing import Any

import cloudpickle
import grain
import numpy as np

from lipnext_jax import errors

# Batches that each process makes ahead. More would only cost memory: a batch
# of 1024 ImageNet images is 154 MB.
_AHEAD = 2
# Threads that read, without workers and in each worker. Pillow releases the
# interpreter lock while it decodes and resizes.
_THREADS, _THREADS_OF_WORKERS = 2, 1

Batch = dict[str, np.ndarray]


def iterate(
  batches: grain.MapDataset, workers: int
) -> Generator[Batch, None, None]:
  """Yields the batches in order, made ahead of time.

  The batches do not depend on `workers`: worker i makes those whose position is
  i modulo the number of workers.

  Without workers, threads of this process make them. Closing the generator ends
  the workers.

  Raises:
    UserError: a worker died, for example because memory ran out.
    Exception: an error that a worker raised is raised here, too.

  >>> batches = grain.MapDataset.range(3).map(lambda i: {'x': np.full(2, i)})
  >>> [int(batch['x'].sum()) for batch in iterate(batches, workers=0)]
  [0, 2, 4]
  """
  if not workers:
    with contextlib.closing(_prefetch(batches, _THREADS)) as iterator:
      yield from iterator
    return
  workers = min(workers, len(batches))
  with contextlib.ExitStack() as stack:
    team = [
      stack.enter_context(contextlib.closing(_Worker(batches[i::workers])))
      for i in range(workers)
    ]
    for worker in itertools.cycle(team):
      batch = worker.receive()
      if batch is None:  # The other workers have no later batch.
        return
      yield batch


def _prefetch(batches: grain.MapDataset, threads: int) -> Any:
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD)
  return iter(batches.to_iter_dataset(options))


class _Worker:
  """A worker process that sends its batches in order."""

  def __init__(self, batches: grain.MapDataset):
    context = multiprocessing.get_context('spawn')
    self._pipe, end = context.Pipe(duplex=False)
    self._process = context.Process(
      target=_work, args=(cloudpickle.dumps(batches), end), daemon=True
    )
    self._process.start()
    # A program may end without closing the generator.
    self._kill = util.Finalize(self, self._process.kill, exitpriority=0)
    end.close()  # Only the worker holds this end: if it dies, the pipe closes.

  def receive(self) -> Batch | None:
    """Returns the next batch, or None after the last one."""
    try:
      found = pickle.loads(self._pipe.recv_bytes())
    except (EOFError, OSError):  # OSError: in the middle of a batch.
      self._process.join()
      raise errors.UserError(
        f'a data worker process died (exit code {self._process.exitcode}); it '
        'may have run out of memory: lower dataset.workers or the batch size'
      ) from None
    if isinstance(found, BaseException):
      raise found
    return found

  def close(self) -> None:
    """Kills the process, which holds nothing that must be saved."""
    self._kill()
    self._process.join()
    self._process.close()
    self._pipe.close()


def _work(batches: bytes, pipe: connection.Connection) -> None:
  """Sends the batches and then None, or the error that was raised."""
  # Clusters and terminals signal all processes of a job at once, but the parent
  # needs batches until it has saved.
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)

  def send(value: object) -> None:
    # The highest protocol copies arrays once less than `pipe.send` does.
    pipe.send_bytes(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

  try:
    dataset = cloudpickle.loads(batches)
    with contextlib.closing(_prefetch(dataset, _THREADS_OF_WORKERS)) as made:
      for batch in made:
        send(batch)
    send(None)
  except Exception as error:
    error.add_note(traceback.format_exc())
    with contextlib.suppress(BrokenPipeError):  # The parent has ended.
      send(error)
