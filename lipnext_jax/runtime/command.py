"""Command-line programs whose errors are one line and an exit code."""

import argparse
from collections.abc import Callable
import sys
from typing import NoReturn

from lipnext_jax import errors
from lipnext_jax import terminal
from lipnext_jax.runtime import explain


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


def run(main: Callable[[], int]) -> int:
  """Calls `main`, prints a known error in one line, and returns the exit code.

  >>> run(lambda: 0)
  0
  """
  terminal.open_streams()
  try:
    return main()
  except BrokenPipeError:  # For example, `head` has read enough.
    terminal.drop_output()
    return terminal.CLOSED
  except (Exception, KeyboardInterrupt) as error:
    if (known := explain.explain(error)) is None:
      raise
    print(f'error: {known}', file=sys.stderr)
    return known.exit_code
