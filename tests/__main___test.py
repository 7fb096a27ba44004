"""`python -m lipnext_jax` answers, in any encoding."""

import configparser
import os
import pathlib
import subprocess
import sys

import pytest

import lipnext_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def call(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'lipnext_jax', *flags],
    cwd=ROOT,
    env=os.environ | {'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_version_is_that_of_the_package():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert lipnext_jax.__version__ == setup['metadata']['version']
  done = call('--version')
  assert done.stdout == f'lipnext_jax {lipnext_jax.__version__}\n'
  assert not done.returncode


@pytest.mark.parametrize('flags', [(), ('--help',)])
def test_the_help_names_programs_modes_and_configs(flags):
  shown = call(*flags).stdout
  for part in (
    '--mode=compile',
    'configs/folder.py',
    'lipnext_jax/config.py',
    'python -m lipnext_jax.certify',
    '--workdir: Where checkpoints',
    'python -m lipnext_jax.data.prepare',
  ):
    assert part in shown


def test_flags_are_those_of_the_main_program():
  done = call('--workdir=x')
  assert done.returncode == 2
  assert done.stderr.startswith('error: --config=None is missing')
