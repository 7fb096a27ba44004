import pathlib
import subprocess
import sys

import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.config import arguments

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUPS = ('W16', 'W32'), ('', 'smoke')


def test_smoke_is_two_steps_and_nothing_else_changes_a_config():
  config = config_lib.smoke(config_lib.default_config(), 'smoke')
  assert config.duration == '2 steps'
  untouched = config_lib.smoke(config_lib.default_config(), '')
  assert untouched.to_dict() == config_lib.default_config().to_dict()


@pytest.mark.parametrize(
  ('argument', 'problem'),
  [
    ('W64', 'is unknown; append nothing, .* any of W16, W32, smoke'),
    (' smoke', 'is unknown'),
    ('W32,W16', "excludes 'W32'; keep one"),
    ('smoke,smoke', 'keep one'),
    # A word may be empty in a group, and never in an argument.
    (',', "argument='' is unknown"),
    ('smoke,', "argument='' is unknown"),
  ],
)
def test_words_that_make_no_sense_are_refused(argument, problem):
  with pytest.raises(errors.ConfigError, match=problem):
    config_lib.parse_argument(argument, *GROUPS)


def test_a_config_of_the_package_is_found_by_name():
  digits = str(ROOT / 'configs' / 'digits.py')
  assert arguments.find_config('lipnext_jax:digits') == digits
  found = arguments.find_config('lipnext_jax:digits:model=bronet,smoke')
  assert found == f'{digits}:model=bronet,smoke'
  for bad in ('lipnext_jax:', 'lipnext_jax:digit', 'lipnext_jax:digits.py'):
    with pytest.raises(errors.ConfigError, match=r'one of .*digits, f'):
      arguments.find_config(bad)


def test_an_installed_package_holds_its_configs(tmp_path):
  """The build copies them, and the copy finds its own."""
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build', '--build-base', tmp_path],
    cwd=ROOT,
    check=True,
  )
  built = tmp_path / 'lib'
  own = {path.name for path in (ROOT / 'configs').glob('*.py')}
  copied = built / 'lipnext_jax' / 'configs'
  assert {path.name for path in copied.glob('*.py')} == own
  program = (
    'from lipnext_jax.config import arguments\n'
    'print(arguments.find_config("lipnext_jax:digits:smoke"))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=built,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == f'{copied / "digits.py"}:smoke\n'
