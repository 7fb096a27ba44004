"""Malformed configs and command lines: one line, no traceback, no trace."""

import json
import os
import pathlib
import subprocess
import sys

import hypothesis
from hypothesis import strategies as st
import pytest

from lipnext_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIELDS = sorted(config_lib.build_field_list(config_lib.default_config()))

# argv holds no NUL, and is no lone surrogate.
TEXT = st.text(
  st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12
)
HOSTILE = st.sampled_from(
  [
    *('', ' ', '-1', '0', '1e400', 'nan', '-inf', '9' * 40, '0x10', 'None'),
    *('()', '(', '[1, 2', "('a',)", '(((', '{}', 'True', '1 2', '--', '=', ','),
    *('-3 epochs', '1e9 epochs', '5 parsecs', 'nan steps', '٣ epochs'),
    *(
      '../../etc/passwd',
      '/dev/zero',
      '/proc/self/mem',
      '%s%n',
      '\n',
      '\x1b[2J',
    ),
    *('__import__("os").system("touch /tmp/fuzzed")', 'lambda: 0'),
  ]
)
VALUE = st.one_of(HOSTILE, TEXT, st.integers().map(str), st.floats().map(str))
OVERRIDE = st.builds(
  '--config.{}={}'.format, st.one_of(st.sampled_from(FIELDS), TEXT), VALUE
)
OTHER = st.one_of(
  st.builds('--config={}'.format, VALUE),
  st.builds('--config=configs/digits.py:{}'.format, VALUE),
  st.builds('--mode={}'.format, VALUE),
  st.builds('--num_processes={}'.format, VALUE),
  st.builds('--process_id={}'.format, VALUE),
  st.builds('--{}={}'.format, TEXT, VALUE),
  TEXT,
  st.sampled_from(['--config', '--workdir=', '--mode', '--', '-', '--no']),
)


def draw(strategy, count):
  """So many examples, the same in every run."""
  drawn = []

  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(strategy)
  def collect(value):
    drawn.append(value)

  collect()
  return drawn


def serve(commands, cwd=ROOT):
  done = subprocess.run(
    [sys.executable, str(ROOT / 'tests/fuzz/server.py')],
    input=json.dumps(commands),
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def check(command, result):
  """One line on stderr that says 'error', a code of ours, nothing else."""
  code, out, err, seconds = result
  assert code in range(1, 9), (command, code, err)
  assert len(err.splitlines()) == 1, (command, err)
  assert err.startswith('error: '), (command, err)
  assert 'Traceback' not in err
  assert not out, (command, out)
  assert seconds < 30, command


def test_malformed_command_lines_are_one_line_each(tmp_path):
  """An empty workdir to evaluate: whatever passes is refused there."""
  lines = draw(st.lists(OVERRIDE, min_size=1, max_size=2), 90)
  lines += draw(st.lists(OTHER, min_size=1, max_size=2), 60)
  base = ['--config=configs/digits.py:smoke', '--mode=eval']
  commands = [
    ['lipnext_jax.main', *base, f'--workdir={tmp_path}/run', *line]
    for line in lines
  ]
  assert len({tuple(command) for command in commands}) >= 100
  for command, result in zip(commands, serve(commands), strict=True):
    check(command, result)
  assert not os.listdir(tmp_path)
  assert not os.path.exists('/tmp/fuzzed')


CONFIG_FILES = {
  'no function': 'x = 1\n',
  'a syntax error': 'def get_config(:\n',
  'an exception': 'def get_config(arg=""):\n  raise KeyError("a\\nb")\n',
  'no config': 'def get_config(arg=""):\n  return 3\n',
  'nothing at all': '',
  'not text': '\x00\x01',
  'another config': (
    'import ml_collections\n'
    'def get_config(arg=""):\n'
    '  return ml_collections.ConfigDict({"model": 3})\n'
  ),
}


def test_config_files_that_are_none_are_one_line_each(tmp_path):
  commands = []
  for name, text in CONFIG_FILES.items():
    path = tmp_path / f'{name.replace(" ", "_")}.py'
    path.write_text(text)
    commands.append(
      ['lipnext_jax.main', f'--config={path}', f'--workdir={tmp_path}/run']
    )
  before = sorted(os.listdir(tmp_path))
  for command, result in zip(commands, serve(commands), strict=True):
    check(command, result)
  assert [n for n in sorted(os.listdir(tmp_path)) if n != '__pycache__'] == (
    before
  )


def test_a_command_that_says_too_much_is_seen():
  """The check can fail."""
  for result in (
    [1, '', 'Traceback (most recent call last):\nValueError', 0.1],
    [0, '', '', 0.1],
    [2, 'out', 'error: x', 0.1],
    [-6, '', 'error: x', 0.1],
  ):
    with pytest.raises(AssertionError):
      check([], result)
