"""Writes the page of a workdir again, e.g. after an attack.

python -m lipnext_jax.report --workdir=DIR
"""

from collections.abc import Sequence
import sys

from lipnext_jax import report
from lipnext_jax.runtime import command


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the page; returns the exit code."""
  parser = command.Parser(
    'python -m lipnext_jax.report',
    'Writes DIR/report.html from the files of an evaluated run.',
  )
  parser.add_argument('--workdir', required=True, metavar='DIR')
  return command.run(
    lambda: print(report.write_page(parser.parse_args(argv).workdir))
  )


if __name__ == '__main__':
  sys.exit(main())
