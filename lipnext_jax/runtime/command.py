"""Command-line programs whose errors are one line and an exit code."""

import argparse
from collections.abc import Callable
import errno
import os
import re
import signal
import sys
from typing import NoReturn

import jax

from lipnext_jax import errors
from lipnext_jax import terminal
from lipnext_jax.runtime import interrupts

# Words in the errors of collectives and of JAX's coordination service when a
# process does not answer.
_GONE = (
  'gloo|nccl|connection closed|connection reset|heartbeat|coordination|'
  'unavailable|deadline_exceeded'
)
# Packages that reach buckets, and raise their own kinds of errors.
_CLOUD = ('aiohttp', 'gcsfs', 'google')


class Parser(argparse.ArgumentParser):
  """An argument parser that raises instead of printing its usage."""

  def __init__(self, prog: str, description: str):
    """Takes the texts of --help; flags cannot be abbreviated."""
    super().__init__(prog=prog, description=description, allow_abbrev=False)

  def parse_args(self, args=None, namespace=None):
    """Parses arguments, and expands ~ to the home folder."""
    given = sys.argv[1:] if args is None else args
    return super().parse_args(terminal.expand_home(given), namespace)

  def error(self, message: str) -> NoReturn:
    """Raises a ConfigError instead of exiting."""
    raise errors.ConfigError(
      'command line', ' '.join(sys.argv[1:]), f'is wrong ({message})', 'see -h'
    )


def run(main: Callable[[], int | None]) -> int:
  """Calls `main`, prints a known error in one line, and returns the exit code.

  >>> run(lambda: None)
  0
  """
  terminal.open_streams()
  try:
    return main() or 0
  except BrokenPipeError:  # For example, `head` has read enough.
    terminal.drop_output()
    return terminal.CLOSED
  except (Exception, KeyboardInterrupt) as error:
    if (known := explain(error)) is None:
      raise
    print(f'error: {known}', file=sys.stderr)
    return known.exit_code


def explain(error: BaseException) -> errors.UserError | None:
  """Explains an error of the user or the machine in one line, or returns None.

  None stands for an error of the code.
  """
  if isinstance(error, errors.UserError):
    return error
  if isinstance(error, KeyboardInterrupt):
    return interrupts.StoppedError(signal.SIGINT, None)
  if isinstance(error, OSError):
    where = f'{error.filename}: ' if error.filename else ''
    return errors.WorkdirError(
      f'{where}{error.strerror or error}; what was saved before is intact: '
      'make room, permit writing or name another place, then start again'
    )
  if type(error).__module__.partition('.')[0] in _CLOUD:
    return errors.WorkdirError(
      f'cloud storage refused or did not answer ({quote(error)}); what was '
      'saved before is intact: see to credentials, permissions and the '
      'network, then start again'
    )
  if isinstance(error, MemoryError):
    return errors.OutOfMemoryError(
      f'out of memory ({quote(error)}): lower dataset.workers or '
      'eval.batch_size (or, in a new workdir, batch_size); what was saved is '
      'intact'
    )
  if not isinstance(error, jax.errors.JaxRuntimeError):
    return None
  if 'RESOURCE_EXHAUSTED' in str(error):
    return errors.OutOfMemoryError(
      f'a device is out of memory ({quote(error)}): set '
      "model.remat='block', lower eval.batch_size, split the parameters over "
      'more devices (mesh.fsdp) or, in a new workdir, lower batch_size; what '
      'was saved is intact'
    )
  if jax.process_count() > 1 and re.search(_GONE, str(error), re.IGNORECASE):
    return errors.LostProcessError(
      f'process {jax.process_index()} of {jax.process_count()}: another one is '
      f'gone or does not answer ({quote(error)}); its own message says why. '
      'What was saved before is intact: run the same command to resume'
    )
  return None


def quote(error: BaseException) -> str:
  r"""Quotes the system's reason in an error, or the start of its message.

  >>> quote(ValueError('write failed:\n  No space left on device [1]'))
  'No space left on device'
  """
  text = ' '.join(str(error).split())
  reasons = (os.strerror(number) for number in errno.errorcode)
  known = (reason for reason in reasons if reason in text)
  return next(known, errors.one_line(error))
