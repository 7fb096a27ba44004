import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors


def test_smoke_is_two_steps_and_other_arguments_are_refused():
  config = config_lib.smoke(config_lib.default_config(), 'smoke')
  assert config.duration == '2 steps'
  untouched = config_lib.smoke(config_lib.default_config(), '')
  assert untouched.to_dict() == config_lib.default_config().to_dict()
  with pytest.raises(errors.ConfigError, match='smoek'):
    config_lib.smoke(config_lib.default_config(), 'smoek')


def test_a_word_may_be_empty_in_a_group_and_never_in_an_argument():
  groups = ('W16', 'W32'), ('', 'smoke')
  assert config_lib.parse_argument('W32', *groups) == ('W32', '')
  assert config_lib.parse_argument('smoke,W16', *groups) == ('W16', 'smoke')
  for bad in (',', 'smoke,', ',W16'):
    with pytest.raises(errors.ConfigError, match="argument='' is unknown"):
      config_lib.parse_argument(bad, *groups)


@pytest.mark.parametrize(
  ('argument', 'problem'),
  [
    ('W64', 'is unknown; append nothing, .* any of W16, W32, smoke'),
    (' smoke', 'is unknown'),
    ('W32,W16', "comes beside 'W32'.*keep one"),
    ('smoke,smoke', 'keep one'),
  ],
)
def test_words_that_make_no_sense_are_refused(argument, problem):
  with pytest.raises(errors.ConfigError, match=problem):
    config_lib.parse_argument(argument, ('W16', 'W32'), ('', 'smoke'))
