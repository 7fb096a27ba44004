"""Terminals of any encoding, and closed pipes."""

import io
import subprocess
import sys

import pytest

from lipnext_jax import terminal


@pytest.mark.parametrize(
  ('encoding', 'text', 'shown'),
  [
    ('latin-1', 'at ε = 36/255, 8×8', 'at \\u03b5 = 36/255, 8×8'),
    ('utf-8', 'a\udcff.png', 'a\\udcff.png'),  # A file name that is no text.
  ],
)
def test_characters_that_an_encoding_lacks_are_escaped(
  encoding, text, shown, monkeypatch
):
  for name in ('stdout', 'stderr'):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, name, stream)
    terminal.open_streams()
    print(text, end='', file=stream, flush=True)
    assert stream.buffer.getvalue().decode(encoding) == shown


@pytest.mark.parametrize('lines', [1, 100_000])  # Buffered, or in the middle.
def test_a_closed_pipe_ends_a_program_quietly(lines):
  program = f"""
import sys
from lipnext_jax.runtime import command
sys.exit(command.run(lambda: print('line\\n' * {lines}, flush=True)))
"""
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  with subprocess.Popen([sys.executable, '-c', program], **pipes) as process:
    process.stdout.close()  # Long before Python has imported anything.
    assert not process.stderr.read()
  assert process.returncode == terminal.CLOSED
