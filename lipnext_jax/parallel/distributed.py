"""Lets several processes form one run: starts them, and lets them agree."""

from collections.abc import Callable
import faulthandler
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from lipnext_jax import errors

# Seconds without a heartbeat after which JAX ends the other processes, unless a
# collective fails first. (A busy host answers within one or two.)
_SILENCE = 40


def start(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the other processes of a run; call it before any device is used.

  Args:
    coordinator: host:port of process 0, or one of these. None: there is
      one process. 'auto': JAX asks the cluster (SLURM, Cloud TPU, MPI, …).
      'env': the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
      JAX_PROCESS_ID hold the arguments, as launch/gke.sh sets them.
    num_processes: number of processes; only with host:port.
    process_id: index of this process; only with host:port.

  Raises:
    ConfigError: the arguments do not go together, or there is no cluster.
  """
  given = coordinator, num_processes, process_id
  if given == (None, None, None):
    return
  if given == ('env', None, None):
    names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
    place, *numbers = (os.environ.get(name, '') for name in names)
    count, index = (int(n) if n.isdecimal() else None for n in numbers)
    given = place, count, index
  automatic = given == ('auto', None, None)
  address, count, index = given
  if automatic:
    address = None
  elif ':' not in (address or '') or index not in range(count or 0):
    raise errors.ConfigError(
      '--coordinator',
      given,
      'do not fit together',
      'give host:port, --num_processes=N and --process_id from 0 to N − 1; '
      "or 'auto' alone; or 'env' alone, with JAX_COORDINATOR_ADDRESS, "
      'JAX_NUM_PROCESSES and JAX_PROCESS_ID set',
    )
  # JAX aborts this process when another one is lost, and absl's fault handler
  # would print the stacks of all threads.
  faulthandler.disable()
  try:
    jax.distributed.initialize(
      address, count, index, heartbeat_timeout_seconds=_SILENCE
    )
  except ValueError as error:
    if not automatic:
      raise
    raise errors.ConfigError(  # No cluster that JAX knows.
      '--coordinator',
      coordinator,
      f'finds no cluster here ({error})',
      'leave it out for one process, or give host:port, --num_processes '
      'and --process_id',
    ) from None


def to_host(x: jax.Array) -> np.ndarray:
  """Copies a whole array to the host of every process.

  >>> to_host(jax.numpy.arange(3)).tolist()
  [0, 1, 2]
  """
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def largest(values: np.ndarray) -> np.ndarray:
  """Returns the entrywise maximum of [n] float64 numbers over all processes.

  The bits of the numbers are sent, because JAX would round them to float32.

  >>> largest(np.array([1.0, 1 + 1e-12])).tolist()
  [1.0, 1.000000000001]
  """
  if jax.process_count() == 1:
    return values
  bits = multihost_utils.process_allgather(values.view(np.uint32))
  return np.asarray(bits).view(np.float64).max(axis=0)


def barrier() -> None:
  """Waits until all processes have called this function.

  CPU devices of a new group wait 30 s for each other, and one process may take
  longer to compile. Groups that have exchanged data once wait without limit.

  >>> barrier()
  """
  on_first(lambda: None)


def on_first(fn: Callable[[], int | None]) -> int:
  """Calls `fn` in the first process and returns its result in all of them.

  Use it to change files that all processes see. If `fn` raises, all processes
  raise.

  Args:
    fn: function () → integer, or None for 0.

  >>> on_first(lambda: 3)
  3
  """
  return _call_where(jax.process_index() == 0, fn)


def on_others(fn: Callable[[], None]) -> None:
  """Calls `fn` in all processes but the first; if one raises, all raise.

  >>> on_others(lambda: None)
  """
  _call_where(jax.process_index() != 0, fn)


def _call_where(chosen: bool, fn: Callable[[], int | None]) -> int:
  """Calls `fn` where `chosen` and returns the first process's result."""
  result, error = 0, None
  if chosen:
    try:
      result = fn() or 0
    except Exception as exception:
      error = exception
  found = np.array([[error is not None, result]], np.int32)
  if jax.process_count() > 1:
    found = np.asarray(multihost_utils.process_allgather(found[0]))
  if error is not None:
    raise error
  failed, results = found.T
  if failed.any():
    index = int(np.argmax(failed))
    name = f'process {index}' if index else 'the first process'
    raise errors.UserError(f'{name} failed; its message says why')
  return int(results[0])
