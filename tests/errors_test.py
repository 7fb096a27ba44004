import pathlib
import pickle
import re

import pytest

from lipnext_jax import errors


@pytest.mark.parametrize(
  ('error', 'text'),
  [
    (
      errors.ConfigError('model.beta', 2, 'is outside', 'choose 0.5'),
      'model.beta=2 is outside; choose 0.5.',
    ),
    (errors.DataError('x.tar: is cut off'), 'x.tar: is cut off'),
    (errors.UserError('two\nlines'), 'two\\nlines'),
  ],
)
def test_an_error_is_one_line_and_survives_the_way_out_of_a_worker(error, text):
  copy = pickle.loads(pickle.dumps(error))
  assert type(copy) is type(error)
  assert str(copy) == str(error) == text


def test_the_exit_codes_are_those_of_the_readme():
  readme = pathlib.Path(__file__).parents[1] / 'README.md'
  rows = re.findall(r'^\| ([\d, ]+) \|', readme.read_text(), re.MULTILINE)
  documented = {int(code) for row in rows for code in row.split(',')}
  kinds = errors.UserError.__subclasses__()
  codes = [k.exit_code for k in kinds if k.__module__ == errors.__name__]
  assert len({*codes}) == len(codes)
  assert {*codes} <= documented
