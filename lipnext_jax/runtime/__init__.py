"""Signals, explained errors, the health of a run, and command-line programs."""

from lipnext_jax.errors import NonFiniteError
from lipnext_jax.runtime.diagnosis import all_finite
from lipnext_jax.runtime.diagnosis import find_not_finite
from lipnext_jax.runtime.health import Watch
from lipnext_jax.runtime.interrupts import Interrupts
from lipnext_jax.runtime.interrupts import StoppedError

__all__ = [
  'Interrupts',
  'NonFiniteError',
  'StoppedError',
  'Watch',
  'all_finite',
  'find_not_finite',
]
