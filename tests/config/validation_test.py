import contextlib

import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.config import validation


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'augment.resize.max': 288},
      'augment.resize.min=0 does not go with augment.resize.max=288',
    ),
    (
      {'model.parametrization': 'block_reflector'},
      "model.m_init='identity' is out of reach of model.parametrization="
      'block_reflector; choose haar',
    ),
    ({'loss.epsilon_end': 0.01}, 'loss.epsilon_end=0.01 is below loss.eps'),
    ({'health.loss_spike': 1.0}, 'health.loss_spike=1.0 would call every'),
    ({'eval.epsilons': (0.1, 'x')}, "eval.epsilons=(0.1, 'x') is not a list"),
  ],
)
def test_fields_that_contradict_each_other_are_refused(values, message):
  config = config_lib.default_config()
  config.update_from_flattened_dict(values)
  with pytest.raises(errors.ConfigError) as info:
    config_lib.validate(config)
  assert str(info.value).startswith(message)


@pytest.mark.parametrize(
  'rule',
  [3, 'R', ('R$',), ('(', ()), (3, ()), ('R$', 'fsdp'), ('R$', (1,)), ('R', 1)],
)
def test_what_is_no_sharding_rule_is_refused(rule):
  config = config_lib.default_config()
  right = ('R$', (None, ('fsdp', 'tensor'), None))
  config.sharding = (right, ('', ()))
  config_lib.validate(config)
  config.sharding = (right, rule)
  with pytest.raises(errors.ConfigError, match='is not a rule; write '):
    config_lib.validate(config)


@pytest.mark.parametrize(
  ('name', 'size', 'resize', 'trained', 'message'),
  [
    ('imagenet', 0, 256, (224, 288), ''),
    ('folder', 64, 0, (0, 0), ''),
    ('folder', 64, 0, (64, 64), ''),
    ('tfds', 0, 0, (32, 40), ''),  # Images keep their size.
    ('cifar10', 0, 0, (32, 40), ''),
    ('folder', 300, 256, (0, 0), '256 is below the 300 pixels that are cut'),
    # Evaluating the central sixteenth of images reduced 77 % accuracy to 15 %.
    ('folder', 64, 256, (0, 0), '256 leaves 6 % of an image, 64×64 pixels; ch'),
    ('hf', 64, 0, (80, 96), '64 is a scale that augment.resize=80 … 96 never'),
  ],
)
def test_training_and_evaluation_see_images_of_one_scale(
  name, size, resize, trained, message
):
  config = config_lib.default_config()
  config.dataset.update(name=name, image_size=size, resize=resize)
  config.augment.resize.min, config.augment.resize.max = trained
  refused = pytest.raises(errors.ConfigError, match=f'^dataset.*={message}')
  with refused if message else contextlib.nullcontext():
    config_lib.validate(config)


def make_model(**fields):
  c = config_lib.default_config().model
  c.update(fields)
  return c


def test_a_kernel_larger_than_the_grid_is_refused():
  with pytest.raises(errors.ConfigError, match=r'kernel_size=3.*at most 2'):
    validation.check_image(make_model(name='bronet', patch_size=4), (8, 8, 1))
  validation.check_image(make_model(name='liresnet', patch_size=4), (8, 8, 1))


def test_a_patch_that_does_not_divide_lists_those_that_do():
  with pytest.raises(errors.ConfigError, match=r'patch_size=3.*1, 2, 4, 8'):
    validation.check_image(make_model(patch_size=3), (8, 8, 1))
  with pytest.raises(errors.ConfigError, match=r'patch_size=4.*of 1, 2\.'):
    validation.check_image(make_model(patch_size=4), (8, 6, 1))
  validation.check_image(make_model(patch_size=4), (8, 12, 1))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'bronet'}, r'mesh\.tensor=2 cannot split model.name=bronet'),
    ({'name': 'liresnet'}, r'mesh\.tensor=2 .*set mesh\.tensor=1'),
    ({'parametrization': 'cayley'}, r'mesh\.tensor=2 .*parametrization=cayley'),
    ({'activation': 'minmax'}, r"model\.activation='minmax' pairs channels"),
  ],
)
def test_models_whose_channels_cannot_be_split_are_refused(fields, message):
  with pytest.raises(errors.ConfigError, match=message):
    validation.check_width_sharding(make_model(**fields), 2)
  validation.check_width_sharding(make_model(**fields), 1)
