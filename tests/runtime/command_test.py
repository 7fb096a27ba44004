import pytest

from lipnext_jax import errors
from lipnext_jax.runtime import command


def test_a_mistake_is_raised_in_one_line():
  parser = command.Parser('program', 'Does things.')
  parser.add_argument('--number', type=int)
  assert parser.parse_args(['--number=3']).number == 3
  for wrong in (['--number=x'], ['--numb=3'], ['more']):
    with pytest.raises(errors.ConfigError, match='is wrong') as info:
      parser.parse_args(wrong)
    assert len(str(info.value).splitlines()) == 1


def test_a_user_error_becomes_a_line_and_its_exit_code(capsys):
  def main():
    raise errors.CheckpointError('the disk is full')

  assert command.run(main) == errors.CheckpointError.exit_code
  assert capsys.readouterr().err == 'error: the disk is full\n'
  assert command.run(lambda: 7) == 7


def test_what_is_no_user_error_is_a_traceback():
  def main():
    raise KeyError('a fault of the program')

  with pytest.raises(KeyError):
    command.run(main)


def test_a_key_that_is_pressed_is_a_line(capsys):
  def pressed():
    raise KeyboardInterrupt

  assert command.run(pressed) == 130
  assert 'stopped by SIGINT' in capsys.readouterr().err
