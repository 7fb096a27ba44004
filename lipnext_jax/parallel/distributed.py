"""Makes one run of several processes: start, agree, fetch arrays."""

from collections.abc import Callable
import faulthandler
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from lipnext_jax import errors

# Seconds after which JAX takes a silent process for dead and ends the others,
# where no collective fails before. (A busy host answers within one or two.)
_SILENCE = 40


def start(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the other processes, before any device is touched.

  Args:
    coordinator: None: a single process. 'auto': JAX finds out where it knows
      the cluster (SLURM, Cloud TPU, MPI, …). 'env': the variables
      JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it, as
      launch/gke.sh sets them. Otherwise host:port of process 0.
    num_processes: of the run; only with host:port.
    process_id: of this process; only with host:port.

  Raises:
    ConfigError: the three do not fit together.
  """
  if coordinator is None or coordinator in ('auto', 'env'):
    if num_processes is not None or process_id is not None:
      raise errors.ConfigError(
        '--coordinator',
        coordinator,
        'does not go with --num_processes and --process_id',
        'give all three, with host:port of process 0',
      )
    if coordinator == 'auto':
      faulthandler.disable()  # See below.
      try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE)
      except ValueError as error:  # No cluster that JAX knows.
        raise errors.ConfigError(
          '--coordinator',
          coordinator,
          f'finds no cluster here ({error})',
          'leave it out for one process, or give host:port, --num_processes '
          'and --process_id',
        ) from None
    if coordinator != 'env':
      return
    coordinator, num_processes, process_id = _read_environment()
  if (
    ':' not in coordinator
    or num_processes is None
    or process_id is None
    or not 0 <= process_id < num_processes
  ):
    raise errors.ConfigError(
      '--coordinator',
      (coordinator, num_processes, process_id),
      'is not a place in a run of several processes',
      'give host:port, --num_processes=N and --process_id from 0 to N − 1',
    )
  # JAX's service ends this process by an abort when another one is gone: absl
  # would have it print the stacks of all threads.
  faulthandler.disable()
  jax.distributed.initialize(
    coordinator,
    num_processes,
    process_id,
    heartbeat_timeout_seconds=_SILENCE,
  )


def _read_environment() -> tuple[str, int, int]:
  """Reads the place of this process from the variables of `start`."""
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  values = [os.environ.get(name, '') for name in names]
  for name, value in zip(names[1:], values[1:], strict=True):
    if not value.isdecimal():
      raise errors.ConfigError(
        name, value, 'is not a number', 'set it, or leave --coordinator=env out'
      )
  return values[0], int(values[1]), int(values[2])


def to_host(x: jax.Array) -> np.ndarray:
  """Fetches all of an array to the host of every process.

  >>> to_host(jax.numpy.arange(3)).tolist()
  [0, 1, 2]
  """
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def largest(values: np.ndarray) -> np.ndarray:
  """Takes the maximum of float64 numbers over all processes, entry by entry.

  Their bits are sent, because JAX would round them to float32.

  Args:
    values: [n] float64, on the host of every process.

  >>> largest(np.array([1.0, 1 + 1e-12])).tolist()
  [1.0, 1.000000000001]
  """
  if jax.process_count() == 1:
    return values
  bits = multihost_utils.process_allgather(values.view(np.uint32))
  return np.asarray(bits).view(np.float64).max(axis=0)


def barrier() -> None:
  """Waits until all processes are here.

  On CPU the devices of a new group have 30 s to find each other, and the slower
  of two processes may compile longer than that. Groups that have met once, as
  they do here, wait.

  >>> barrier()
  """
  on_first(lambda: None)


def on_first(fn: Callable[[], int | None]) -> int:
  """Calls `fn` in the first process only; all processes get its result.

  Meant for changes to files that all of them see. If it raises there, the
  others raise too instead of waiting.

  Args:
    fn: () → an integer, or None for 0.

  >>> on_first(lambda: 3)
  3
  """
  return _call_where(jax.process_index() == 0, fn)


def on_others(fn: Callable[[], None]) -> None:
  """Calls `fn` in every process but the first; if it raises in one, all raise.

  >>> on_others(lambda: None)
  """
  _call_where(jax.process_index() != 0, fn)


def _call_where(chosen: bool, fn: Callable[[], int | None]) -> int:
  """Calls `fn` where `chosen`; returns the first process's result everywhere.

  Raises:
    UserError: it raised in another process.
  """
  result, error = 0, None
  if chosen:
    try:
      result = fn() or 0
    except Exception as exception:
      if jax.process_count() == 1:
        raise
      error = exception
  if jax.process_count() == 1:
    return result
  found = multihost_utils.process_allgather(
    np.array([error is not None, result], np.int32)
  )
  if error is not None:
    raise error
  if found[:, 0].any():
    index = int(np.argmax(found[:, 0]))
    name = f'process {index}' if index else 'the first process'
    raise errors.UserError(f'{name} failed; its message says why')
  return int(found[0, 1])
