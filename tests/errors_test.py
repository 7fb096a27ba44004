import pickle

from lipnext_jax import errors


def test_message_is_one_line_with_field_value_and_remedy():
  error = errors.ConfigError('model.beta', 2, 'is outside', 'choose 0.5')
  assert str(error) == 'model.beta=2 is outside; choose 0.5.'
  assert error.field == 'model.beta'


def test_exit_codes_tell_config_errors_apart():
  assert errors.ConfigError.exit_code == 2
  assert errors.UserError.exit_code == 1


def test_a_data_error_comes_whole_out_of_a_worker():
  error = pickle.loads(pickle.dumps(errors.DataError('x.tar: is cut off')))
  assert type(error) is errors.DataError
  assert str(error) == 'x.tar: is cut off'
  assert errors.DataError.exit_code == 3


def test_errors_survive_pickling():
  """As they must on their way out of a data worker process."""
  for error in (
    errors.ConfigError('model.beta', 2, 'is outside', 'choose 0.5'),
    errors.UserError('example 3 cannot be read'),
  ):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
