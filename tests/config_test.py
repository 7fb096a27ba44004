import ml_collections
import pytest

from configs import digits
from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import validation


def test_identity_ignores_exactly_the_free_fields():
  config = config_lib.default_config()
  before = config_lib.identity(config)
  config.log.every = '7 steps'
  config.dataset.data_dir = '/elsewhere'
  config.eval.epsilons = (1.0,)
  assert config_lib.identity(config) == before
  for field, value in (('seed', 5), ('model.beta', 0.25), ('batch_size', 8)):
    other = config_lib.default_config()
    other.update_from_flattened_dict({field: value})
    assert config_lib.identity(other) != before


def test_a_config_holds_plain_data_only():
  fields = config_lib.build_field_list(config_lib.default_config())
  plain = (bool, int, float, str, tuple)
  assert all(isinstance(value, plain) for value in fields.values())
  assert isinstance(config_lib.default_config(), ml_collections.ConfigDict)


def test_smoke_is_two_steps_and_other_arguments_are_refused():
  config = config_lib.smoke(config_lib.default_config(), 'smoke')
  assert config.duration == '2 steps'
  untouched = config_lib.smoke(config_lib.default_config(), '')
  assert untouched.to_dict() == config_lib.default_config().to_dict()
  with pytest.raises(errors.ConfigError, match='smoek'):
    config_lib.smoke(config_lib.default_config(), 'smoek')


@pytest.mark.parametrize('model', ['lipnext', 'liresnet', 'bronet'])
def test_the_digits_config_takes_a_model_and_smoke(model):
  config = digits.get_config(f'smoke,model={model}')
  validation.validate(config)
  assert config.model.name == model
  assert config.duration == '2 steps'
  if model != 'lipnext':  # Tiny in all of its parts.
    assert config.model.baseline.dense_width == 16
  assert digits.get_config(f'model={model}').duration == '400 epochs'


def test_an_unknown_model_is_refused_with_the_choices():
  with pytest.raises(errors.ConfigError, match='liresnet, model=bronet'):
    digits.get_config('model=resnet')
  with pytest.raises(errors.ConfigError, match='modell=bronet'):
    digits.get_config('modell=bronet')


def test_a_word_may_be_empty_in_a_group_and_never_in_an_argument():
  groups = ('W16', 'W32'), ('', 'smoke')
  assert config_lib.parse_argument('W32', *groups) == ('W32', '')
  assert config_lib.parse_argument('smoke,W16', *groups) == ('W16', 'smoke')
  for bad in (',', 'smoke,', ',W16'):
    with pytest.raises(errors.ConfigError, match="argument='' is unknown"):
      config_lib.parse_argument(bad, *groups)
