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


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (errors.CheckpointError('the disk is full'), 4, 'the disk is full'),
    (KeyboardInterrupt(), 130, 'stopped by SIGINT; what was saved is intact'),
    (OSError(28, 'No space left', 'x.json'), 7, 'x.json: No space left; '),
  ],
)
def test_a_known_error_becomes_a_line_and_its_exit_code(
  capsys, error, code, line
):
  def main():
    raise error

  assert command.run(main) == code
  assert capsys.readouterr().err.startswith(f'error: {line}')


def test_a_fault_of_the_program_is_a_traceback():
  with pytest.raises(KeyError):
    command.run(lambda: {}['x'])
  assert command.run(lambda: 7) == 7
