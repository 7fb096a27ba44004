"""Helpers of command lines: encodings, closed pipes, --help, ~ in flags."""

from collections.abc import Sequence
import io
import os
import signal
import sys

from absl import app

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


def show_help(argv: Sequence[str]) -> None:
  """Prints the help of an absl program and exits with 0, if argv asks for it.

  absl itself would exit with 1.
  """
  if {'--help', '-help', '-h', '--helpshort', '--helpfull'} & {*argv[1:]}:
    shorthelp = '--helpfull' not in argv
    app.usage(shorthelp=shorthelp, writeto_stdout=True, exitcode=0)


def expand_home(argv: Sequence[str]) -> list[str]:
  """Expands ~ in arguments and in values of flags, which bash leaves alone.

  >>> expand_home(['--workdir=~/x']) == ['--workdir=' + expand_home(['~/x'])[0]]
  True
  """

  def expand(argument: str) -> str:
    flag, equals, value = argument.partition('=')
    if equals and flag.startswith('-'):
      return f'{flag}={os.path.expanduser(value)}'
    return os.path.expanduser(argument)

  return [expand(argument) for argument in argv]
