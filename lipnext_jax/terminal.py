"""Terminals and paths as they are: any encoding, closed pipes, ~ in flags."""

import codecs
from collections.abc import Sequence
import contextlib
import os
import signal
import sys

from absl import app

CLOSED = 128 + signal.SIGPIPE  # Exit code of a closed pipe, as shells have it.
# Of what is printed, what other encodings lack most often.
_PLAIN = str.maketrans(
  {'ℓ': 'l', 'ε': 'eps', 'Λ': 'Lambda', 'α': 'alpha', 'β': 'beta', 'τ': 'tau',
   '‖': '|', '×': 'x', '−': '-', '–': '-', '…': '...', '≤': '<=', '→': '->',
   '“': '"', '”': '"', 'ᵀ': 'T'}
)  # fmt: skip


def _spell_out(error: UnicodeError) -> tuple[str, int]:
  """Replaces what a stream cannot encode by plain letters, or by escapes."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  text = error.object[error.start : error.end].translate(_PLAIN)
  return text.encode('ascii', 'backslashreplace').decode(), error.end


codecs.register_error('spell_out', _spell_out)


def open_streams() -> None:
  """Lets stdout and stderr take any text, whatever their encoding."""
  for stream in (sys.stdout, sys.stderr):
    # What stands in for a stream, in tests and notebooks, takes all text.
    with contextlib.suppress(AttributeError):
      stream.reconfigure(errors='spell_out')  # type: ignore[union-attr]


def drop_output() -> None:
  """Sends what is left of the output nowhere: its reader is gone."""
  with contextlib.suppress(AttributeError, OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
      try:
        stream.flush()
      except BrokenPipeError:  # Python would flush once more at its end.
        os.dup2(nowhere, stream.fileno())


def show_help(argv: Sequence[str]) -> None:
  """Prints the help of an absl program and exits with 0, if it is asked for.

  absl by itself exits with 1, as if it had failed.
  """
  if {'--help', '-help', '-h', '--helpshort', '--helpfull'} & {*argv[1:]}:
    shorthelp = '--helpfull' not in argv
    app.usage(shorthelp=shorthelp, writeto_stdout=True, exitcode=0)


def expand_home(argv: Sequence[str]) -> list[str]:
  """Expands ~ in arguments and values of flags, as a shell does elsewhere.

  >>> import os
  >>> home = os.path.expanduser('~')
  >>> expand_home(['--workdir=~/x', '~']) == [f'--workdir={home}/x', home]
  True
  """
  expanded = []
  for argument in argv:
    flag, equals, value = argument.partition('=')
    if equals and flag.startswith('-'):
      argument = f'{flag}={os.path.expanduser(value)}'
    else:
      argument = os.path.expanduser(argument)
    expanded.append(argument)
  return expanded
