"""`python -m lipnext_jax` answers, in any encoding."""

import os
import pathlib
import subprocess
import sys

import pytest

import lipnext_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
HELP = ('--mode=compile', 'configs/folder.py', 'python -m lipnext_jax.certify')


@pytest.mark.slow  # Each starts the program.
@pytest.mark.parametrize(
  ('flags', 'code', 'parts'),
  [
    ((), 0, (*HELP, '--workdir: Where checkpoints')),
    (('--version',), 0, (f'lipnext_jax {lipnext_jax.__version__}\n',)),
    (('--workdir=x',), 2, ('error: --config=None is missing',)),
  ],
)
def test_it_is_the_main_program_or_its_help(flags, code, parts):
  done = subprocess.run(
    [sys.executable, '-m', 'lipnext_jax', *flags],
    cwd=ROOT,
    env=os.environ | {'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code
  for part in parts:
    assert part in done.stdout + done.stderr
