"""Terminals of any encoding, closed pipes, and ~ where no shell expands it."""

import os
import subprocess
import sys

import pytest

from lipnext_jax import terminal

PROGRAM = """
import sys
from lipnext_jax import terminal
terminal.open_streams()
print(sys.argv[1])
print(sys.argv[1], file=sys.stderr)
"""


@pytest.mark.parametrize(
  ('encoding', 'text', 'shown'),
  [
    ('utf-8', 'at ε = 36/255, 8×8', 'at ε = 36/255, 8×8'),
    ('latin-1', 'at ε = 36/255, 8×8', 'at \\u03b5 = 36/255, 8×8'),
    ('utf-8', b'a\xff.png', 'a\\udcff.png'),  # A file name that is no text.
  ],
)
def test_characters_that_an_encoding_lacks_are_escaped(encoding, text, shown):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, text],
    env=os.environ | {'PYTHONIOENCODING': encoding, 'PYTHONUTF8': '1'},
    capture_output=True,
    check=True,
  )
  for stream in (done.stdout, done.stderr):
    assert stream.decode(encoding).strip() == shown


@pytest.mark.parametrize('lines', [1, 100_000])  # Buffered, or in the middle.
def test_a_closed_pipe_ends_a_program_quietly(lines):
  program = f"""
import sys
from lipnext_jax.runtime import command
def main():
  for line in range({lines}):
    print('line', line)
  sys.stdout.flush()
  return 1
sys.exit(command.run(main))
"""
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, '-c', program],
    stdout=write,
    stderr=subprocess.PIPE,
    check=False,
  )
  os.close(write)
  assert done.returncode == terminal.CLOSED
  assert not done.stderr


def test_the_home_folder_is_found_in_flags_and_arguments(monkeypatch):
  monkeypatch.setenv('HOME', '/me')
  assert terminal.expand_home(['--workdir=~/runs', '~/a.png']) == [
    '--workdir=/me/runs',
    '/me/a.png',
  ]
  for other in ('--name=a~b', 'a=~/b.png'):  # The second is a file's name.
    assert terminal.expand_home([other]) == [other]
