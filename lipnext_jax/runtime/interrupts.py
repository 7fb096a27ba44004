"""Stops a run after the current step, with a checkpoint, when a signal comes.

Clusters send SIGTERM before they take a machine away, and Ctrl-C sends SIGINT.
The first signal ends the loop after the current step; the second ends the
process at once. If a run has several processes, JAX's preemption service waits
for SIGTERM, and chooses a step at which all of them stop.
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
  SIGTERM, 130 for SIGINT.
  """

  def __init__(self, signum: int, step: int | None):
    """Takes the signal, and the step that was saved, if any."""
    name = signal.Signals(signum).name
    saved = (
      'what was saved is intact' if step is None else f'step {step} is saved'
    )
    super().__init__(
      f'stopped by {name}; {saved}, run the same command to resume'
    )
    self.exit_code = 128 + signum


class Interrupts:
  """A context manager that remembers signals."""

  def __enter__(self) -> Self:
    """Starts without any signal."""
    self._signum: int | None = None
    # JAX's preemption service has a SIGTERM handler of its own.
    watched = SIGNALS if jax.process_count() == 1 else ()
    self._before = {s: signal.signal(s, self._handle) for s in watched}
    return self

  def __exit__(self, *error: object) -> None:
    """Restores the handlers from before."""
    for signum, handler in self._before.items():
      signal.signal(signum, handler)

  def _handle(self, signum: int, frame: FrameType | None) -> None:
    """Takes a signal: the first is remembered, the second ends the process."""
    del frame  # Unused.
    if self._signum is not None:
      os._exit(128 + signum)
    self._signum = signum

  def received(self, step: int) -> int | None:
    """Returns the signal for which all processes stop after `step`, if any.

    Args:
      step: number of updates. Every process must ask after every step.
    """
    if jax.process_count() > 1:
      stop = multihost_utils.reached_preemption_sync_point(step)
      return signal.SIGTERM if stop else None
    return self._signum
