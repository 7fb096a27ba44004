import os
import random
import time

import pytest
import sklearn.datasets  # noqa: F401 (A run says so if it waits for it.)

from lipnext_jax import config as config_lib

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
  values = [
    rng.choice(HOSTILE),
    draw_text(rng),
    str(rng.randrange(-(2**70), 2**70)),
    str(rng.lognormvariate(0, 100)),
  ]
  value = rng.choice(values)
  field = rng.choice([rng.choice(FIELDS), draw_text(rng)])
  flag = rng.choice(['config', 'mode', 'num_processes', 'process_id'])
  bare = rng.choice(['--config', '--workdir=', '--mode', '--', '-', '--no'])
  flags = [
    f'--config.{field}={value}',
    f'--config=configs/digits.py:{value}',
    f'--{flag}={value}',
    f'--{draw_text(rng)}={value}',
  ]
  return rng.choice([*flags, draw_text(rng), bare])


CONFIG_FILES = {
  'no_function': 'x = 1\n',
  'a_syntax_error': 'def get_config(:\n',
  'an_exception': 'def get_config(arg=""):\n  raise KeyError("a\\nb")\n',
  'no_config': 'def get_config(arg=""):\n  return 3\n',
  'not_text': '\x00\x01',
  'another_config': (
    'from ml_collections import ConfigDict\n'
    'def get_config(arg=""):\n  return ConfigDict({"model": 3})\n'
  ),
}


def check(command, result, seconds=0.0):
  """One line on stderr that says 'error', a code of ours, nothing else."""
  code, out, err = result
  assert code in range(1, 9), (command, result)
  assert (out, err[:7]) == ('', 'error: '), (command, result)
  assert len(err.splitlines()) == 1, (command, result)
  assert seconds < 30, (command, result)


def test_malformed_command_lines_and_configs_are_one_line_each(
  tmp_path, run_main
):
  """An empty workdir to evaluate: whatever passes is refused there."""
  for name, text in CONFIG_FILES.items():
    (tmp_path / f'{name}.py').write_text(text)
  before = {*os.listdir(tmp_path), '__pycache__'}
  rng, base = random.Random(0), ['--config=configs/digits.py:smoke']
  commands = []
  for i in range(80):
    drawn = [draw_flag(rng) for _ in range(1 + i % 2)]
    commands.append([*base, '--mode=eval', *drawn])
  commands += [[f'--config={tmp_path}/{name}.py'] for name in CONFIG_FILES]
  for command in commands:
    begin = time.monotonic()
    result = run_main(f'--workdir={tmp_path}/run', *command)
    check(command, result, time.monotonic() - begin)
  assert {*os.listdir(tmp_path), '__pycache__'} == before
  assert not os.path.exists('/tmp/fuzzed')


def test_a_command_that_says_too_much_is_seen():
  for result in (
    [1, '', 'Traceback (most recent call last):\nValueError'],
    [0, '', ''],
    [2, 'out', 'error: x'],
    [-6, '', 'error: x'],
  ):
    with pytest.raises(AssertionError):
      check([], result)
