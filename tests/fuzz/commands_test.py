"""Malformed configs and command lines: one line, no traceback, no trace."""

import json
import os
import pathlib
import random
import sys

import pytest

from lipnext_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FIELDS = sorted(config_lib.flatten(config_lib.default_config()))
HOSTILE = [
  *('', ' ', '-1', '0', '1e400', 'nan', '-inf', '9' * 40, '0x10', 'None'),
  *('()', '[1, 2', "('a',)", '(((', '{}', 'True', '1 2', '--', '=', ','),
  *('-3 epochs', '1e9 epochs', '5 parsecs', 'nan steps', '٣ epochs'),
  *('../../etc/passwd', '/dev/zero', '%s%n', '\n', '\x1b[2J'),
  *('__import__("os").system("touch /tmp/fuzzed")', 'lambda: 0'),
]


def draw_text(rng):
  """Draws up to 12 characters; argv holds no NUL, and no lone surrogate."""
  ends = rng.choices([0x80, 0x800, 0xD800], k=rng.randrange(13))
  return ''.join(chr(rng.randrange(1, end)) for end in ends)


def draw_flag(rng):
  value = rng.choice(
    [
      rng.choice(HOSTILE),
      draw_text(rng),
      str(rng.randrange(-(2**70), 2**70)),
      str(rng.lognormvariate(0, 100)),
    ]
  )
  field = rng.choice([rng.choice(FIELDS), draw_text(rng)])
  flag = rng.choice(['config', 'mode', 'num_processes', 'process_id'])
  return rng.choice(
    [
      f'--config.{field}={value}',
      f'--config=configs/digits.py:{value}',
      f'--{flag}={value}',
      f'--{draw_text(rng)}={value}',
      draw_text(rng),
      rng.choice(['--config', '--workdir=', '--mode', '--', '-', '--no']),
    ]
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


def check(command, result):
  """One line on stderr that says 'error', a code of ours, nothing else."""
  code, out, err, seconds = result
  assert code in range(1, 9), (command, result)
  assert len(err.splitlines()) == 1, (command, result)
  assert err.startswith('error: '), (command, result)
  assert not out, (command, result)
  assert seconds < 30, (command, result)


def test_malformed_command_lines_and_configs_are_one_line_each(
  tmp_path, run_command
):
  """An empty workdir to evaluate: whatever passes is refused there."""
  for name, text in CONFIG_FILES.items():
    (tmp_path / f'{name}.py').write_text(text)
  before = sorted(os.listdir(tmp_path))
  rng = random.Random(0)
  flags = [[draw_flag(rng) for _ in range(1 + i % 2)] for i in range(80)]
  base = ['--config=configs/digits.py:smoke', '--mode=eval']
  lines = [[*base, *drawn] for drawn in flags]
  lines += [[f'--config={tmp_path}/{name}.py'] for name in CONFIG_FILES]
  commands = [
    ['lipnext_jax.main', f'--workdir={tmp_path}/run', *line] for line in lines
  ]
  server = [sys.executable, 'tests/fuzz/server.py', json.dumps(commands)]
  done = run_command(server, PYTHONPATH=str(ROOT))
  assert done.returncode == 0, done.stderr
  results = json.loads(done.stdout)
  for command, result in zip(commands, results, strict=True):
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
