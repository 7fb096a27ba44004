import pickle

import pytest

from lipnext_jax import errors


@pytest.mark.parametrize(
  ('error', 'text'),
  [
    (errors.ConfigError('a.b', 2, 'is wrong', 'mend'), 'a.b=2 is wrong; mend.'),
    (errors.DataError(errors.one_line(OSError('x' * 500))), 'x' * 300),
    (errors.UserError('two\nlines'), 'two\\nlines'),
  ],
)
def test_an_error_is_one_line_and_survives_the_way_out_of_a_worker(error, text):
  copy = pickle.loads(pickle.dumps(error))
  assert type(copy) is type(error)
  assert str(copy) == str(error) == text
