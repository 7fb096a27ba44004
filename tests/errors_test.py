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


def test_every_kind_has_an_exit_code_of_its_own():
  kinds = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.UserError)
  ]
  assert len({kind.exit_code for kind in kinds}) == len(kinds)
  # 126 and above belong to the shell and to signals.
  assert all(0 < kind.exit_code < 126 for kind in kinds)


def test_a_run_that_diverged_says_what_is_left():
  assert 'checkpoint of step 5 is intact' in str(
    errors.NonFiniteError(7, 'the loss is NaN', 5)
  )
