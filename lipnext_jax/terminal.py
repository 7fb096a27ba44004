"""Helpers of command lines: encodings, closed pipes, ~ in flags."""

from collections.abc import Sequence
import io
import os
import signal
import sys

CLOSED = 128 + signal.SIGPIPE  # What shells say of a closed pipe.


def open_streams() -> None:
  """Makes stdout and stderr escape what their encoding lacks."""
  for stream in (sys.stdout, sys.stderr):
    # Stand-ins for a stream, in tests and notebooks, take any text.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def drop_output() -> None:
  """Drops buffered output whose reader has gone."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except BrokenPipeError:  # Python would flush again when it exits.
      os.dup2(nowhere, stream.fileno())


def expand_home(argv: Sequence[str]) -> list[str]:
  """Expands ~ in arguments and in values of flags, which bash leaves alone.

  >>> home = os.path.expanduser('~')
  >>> expand_home(['--d=~', '~', 'd=~']) == [f'--d={home}', home, 'd=~']
  True
  """
  expanded = []
  for argument in argv:
    flag, equals, value = argument.partition('=')
    if equals and flag.startswith('-'):
      expanded.append(f'{flag}={os.path.expanduser(value)}')
    else:
      expanded.append(os.path.expanduser(argument))
  return expanded
