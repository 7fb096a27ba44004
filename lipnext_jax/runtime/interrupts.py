"""Stops a run after the current step, with a checkpoint, when a signal comes.

Clusters send SIGTERM before they take a machine away, and Ctrl-C sends SIGINT.
If a run has several processes, JAX's preemption service waits for SIGTERM, and
chooses a step at which all of them stop.
"""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

from lipnext_jax import errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(errors.UserError):
  """A signal ended the run; the same command resumes it.

  The exit code is 128 plus the number of the signal, as in shells: 143 for
  SIGTERM, 130 for SIGINT. `step` is the one that was saved, if any.
  """

  def __init__(self, signum: int, step: int | None):
    saved = 'what was saved is intact'
    if step is not None:
      saved = f'step {step} is saved'
    super().__init__(
      f'stopped by {signal.Signals(signum).name}; {saved}, run the same '
      'command to resume'
    )
    self.exit_code = 128 + signum


class Interrupts:
  """A context manager that remembers a signal; a second ends the process."""

  def __enter__(self) -> Self:
    self._signum: int | None = None
    # JAX's preemption service has a SIGTERM handler of its own.
    watched = SIGNALS if jax.process_count() == 1 else ()
    self._before = {s: signal.signal(s, self._handle) for s in watched}
    return self

  def __exit__(self, *error: object) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    del frame  # Unused.
    if self._signum is not None:
      os._exit(128 + signum)
    self._signum = signum

  def received(self, step: int) -> int | None:
    """Returns the signal for which all processes stop after `step`, if any.

    Every process must ask after every step.
    """
    if jax.process_count() > 1:
      stop = multihost_utils.reached_preemption_sync_point(step)
      return signal.SIGTERM if stop else None
    return self._signum
