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
FIELDS = sorted(config_lib.flatten(config_lib.default_config()))

# argv holds no NUL, and is no lone surrogate.
TEXT = st.text(
  st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12
)
HOSTILE = st.sampled_from(
  [
    *('', ' ', '-1', '0', '1e400', 'nan', '-inf', '9' * 40, '0x10', 'None'),
    *('()', '[1, 2', "('a',)", '(((', '{}', 'True', '1 2', '--', '=', ','),
    *('-3 epochs', '1e9 epochs', '5 parsecs', 'nan steps', '٣ epochs'),
    *('../../etc/passwd', '/dev/zero', '%s%n', '\n', '\x1b[2J'),
    *('__import__("os").system("touch /tmp/fuzzed")', 'lambda: 0'),
  ]
)
VALUE = st.one_of(HOSTILE, TEXT, st.integers().map(str), st.floats().map(str))
FIELD = st.one_of(st.sampled_from(FIELDS), TEXT)
FLAG = st.one_of(
  st.builds('--config.{}={}'.format, FIELD, VALUE),
  st.builds('--config=configs/digits.py:{}'.format, VALUE),
  *(
    st.builds((flag + '={}').format, VALUE)
    for flag in ('--config', '--mode', '--num_processes', '--process_id')
  ),
  st.builds('--{}={}'.format, TEXT, VALUE),
  TEXT,
  st.sampled_from(['--config', '--workdir=', '--mode', '--', '-', '--no']),
)

CONFIG_FILES = {
  'no_function': 'x = 1\n',
  'a_syntax_error': 'def get_config(:\n',
  'an_exception': 'def get_config(arg=""):\n  raise KeyError("a\\nb")\n',
  'no_config': 'def get_config(arg=""):\n  return 3\n',
  'nothing_at_all': '',
  'not_text': '\x00\x01',
  'another_config': (
    'import ml_collections\n'
    'def get_config(arg=""):\n'
    '  return ml_collections.ConfigDict({"model": 3})\n'
  ),
}


def draw(strategy, count):
  """Draws `count` examples, the same in every run."""
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


def serve(commands):
  done = subprocess.run(
    [sys.executable, str(ROOT / 'tests/fuzz/server.py')],
    input=json.dumps(commands),
    cwd=ROOT,
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
  assert code in range(1, 9), (command, result)
  assert len(err.splitlines()) == 1, (command, result)
  assert err.startswith('error: '), (command, result)
  assert not out, (command, result)
  assert seconds < 30, (command, result)


@pytest.mark.slow  # Eighty processes.
def test_malformed_command_lines_and_configs_are_one_line_each(tmp_path):
  """An empty workdir to evaluate: whatever passes is refused there."""
  for name, text in CONFIG_FILES.items():
    (tmp_path / f'{name}.py').write_text(text)
  before = sorted(os.listdir(tmp_path))
  base = ['--config=configs/digits.py:smoke', '--mode=eval']
  lines = [
    [*base, *line] for line in draw(st.lists(FLAG, min_size=1, max_size=2), 80)
  ]
  lines += [[f'--config={tmp_path}/{name}.py'] for name in CONFIG_FILES]
  commands = [
    ['lipnext_jax.main', f'--workdir={tmp_path}/run', *line] for line in lines
  ]
  assert len({tuple(command) for command in commands}) >= 70
  for command, result in zip(commands, serve(commands), strict=True):
    check(command, result)
  left = sorted(name for name in os.listdir(tmp_path) if name != '__pycache__')
  assert left == before
  assert not os.path.exists('/tmp/fuzzed')


def test_a_command_that_says_too_much_is_seen():
  for result in (
    [1, '', 'Traceback (most recent call last):\nValueError', 0.1],
    [0, '', '', 0.1],
    [2, 'out', 'error: x', 0.1],
    [-6, '', 'error: x', 0.1],
  ):
    with pytest.raises(AssertionError):
      check([], result)
