"""Writes a workdir's report again, e.g. after its certificates were attacked.

python -m lipnext_jax.page --workdir=DIR
"""

from collections.abc import Sequence
import sys

from lipnext_jax import page
from lipnext_jax.runtime import command


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the report; returns the exit code."""

  def run() -> int:
    parser = command.Parser(
      'python -m lipnext_jax.page',
      'Writes DIR/report.html from the files of an evaluated run.',
    )
    parser.add_argument('--workdir', required=True, metavar='DIR')
    print(page.write_page(parser.parse_args(argv).workdir))
    return 0

  return command.run(run)


if __name__ == '__main__':
  sys.exit(main())
