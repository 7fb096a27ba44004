"""Writes a workdir's report again, e.g. after its certificates were attacked.

python -m lipnext_jax.page --workdir=DIR
"""

import argparse
import sys

from lipnext_jax import errors
from lipnext_jax import page


def main(argv: list[str] | None = None) -> int:
  """Writes the report; a mistake is one line on stderr and an exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m lipnext_jax.page',
    description='Writes DIR/report.html from the files of an evaluated run.',
  )
  parser.add_argument('--workdir', required=True, metavar='DIR')
  workdir = parser.parse_args(argv).workdir
  try:
    print(page.write_page(workdir))
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(main())
