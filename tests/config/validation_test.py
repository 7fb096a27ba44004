import contextlib

import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.config import validation

FIELDS = config_lib.FIELDS
IMAGE, WIDTH = validation.check_image, validation.check_width_sharding


def make(values):
  """Returns the default config with these values, by dotted names."""
  config = config_lib.default_config()
  with config.unlocked():
    config.update_from_flattened_dict(values)
  return config


def refusal(values):
  """Returns the error for the default config with these values."""
  with pytest.raises(errors.ConfigError) as info:
    config_lib.validate(make(values))
  return info.value


WRONG = {str: 'x', tuple: ('x',), int: -7, float: -7.0}
# Fields that may hold any value of their type, or are checked elsewhere.
FREE = {'dataset.data_dir', 'sharding'}
BAD_VALUES = [
  *(
    (name, WRONG[type(field.default)])
    for name, field in FIELDS.items()
    if type(field.default) is not bool and name not in FREE
  ),
  ('dataset.test_share', 0.6),
  ('augment.randaugment.magnitude', 31),
  ('model.shift_ratio', 0.3),
  ('loss.epsilon', float('nan')),
  ('optimizer.warmup', '20'),
  ('duration', '5 parsecs'),
  ('duration', '-3 epochs'),
  ('eval.epsilons', ()),
]


@pytest.mark.parametrize(('field', 'value'), BAD_VALUES)
def test_a_bad_value_is_refused_by_name(field, value):
  error = refusal({field: value})
  assert error.field == field
  assert repr(value) in str(error)


def valid_values(name):
  """Yields values that a field may have by itself, its default first."""
  field = FIELDS[name]
  others = (*field.choices, True, False, 0, 1, 2, 0.1, 2.0, '0 steps')
  for value in (field.default, *others):
    with contextlib.suppress(errors.ConfigError):
      field.check(name, value)
      yield value


@pytest.mark.parametrize(
  ('name', 'other'),
  [(name, other) for name in FIELDS for other in FIELDS[name].only_with],
)
def test_a_field_that_nothing_reads_is_refused(name, other):
  read = FIELDS[name].only_with[other]
  for value in read:
    FIELDS[other].check(other, value)  # Some value has the field read.
  held = next(
    value
    for value in valid_values(other)
    if (value not in read if read else value in (0, '', '0 steps'))
  )
  value = next(v for v in valid_values(name) if v != FIELDS[name].default)
  error = str(refusal({other: held, name: value}))
  choice = f' to {" or ".join(map(repr, read))}' if read else ''
  assert error == (
    f'{name}={value!r} has no effect with {other}={held!r}; set it to its '
    f'default, {FIELDS[name].default!r}, or set {other}{choice}.'
  )


def test_unknown_missing_and_mistyped_fields_are_refused():
  assert str(refusal({'model.heads': 3})).startswith(
    'model.heads=3 is not a config field; did you mean '
  )
  # A field may not change its type, an int may not become a bool either.
  for value in ('wide', True):
    config = config_lib.default_config()
    del config.model.width
    with pytest.raises(errors.ConfigError, match=r'model\.width.*is missing'):
      config_lib.validate(config)
    config.model.width = value
    with pytest.raises(errors.ConfigError, match=r'model\.width.*type int'):
      config_lib.validate(config)


# Fields that decide the scale of a set's images.
SCALE = (
  'dataset.name', 'dataset.image_size', 'dataset.resize', 'augment.resize.min',
  'augment.resize.max',
)  # fmt: skip


def scale(*values):
  return dict(zip(SCALE, values, strict=True))


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
    ({'eval.epsilons': (0.1, 'x')}, "eval.epsilons=(0.1, 'x') is not a list"),
    (
      scale('folder', 300, 256, 0, 0),
      'dataset.resize=256 is below the 300 pixels that are cut',
    ),
    (  # Evaluating a central sixteenth reduced 77 % accuracy to 15 %.
      scale('folder', 64, 256, 0, 0),
      'dataset.resize=256 leaves 6 % of an image, 64×64 pixels; choose 64',
    ),
    (
      scale('hf', 64, 0, 80, 96),
      'dataset.resize=64 is a scale that augment.resize=80 … 96 never trains',
    ),
    *(
      ({'sharding': (('R$', ()), rule)}, f'sharding={rule!r} is not a rule; w')
      for rule in (3, ('R$',), ('(', ()), ('R$', 'fsdp'), ('R$', (1,)))
    ),
  ],
)
def test_fields_that_contradict_each_other_are_refused(values, message):
  assert str(refusal(values)).startswith(message)


def test_the_defaults_and_fields_that_go_together_are_valid():
  for values in (
    {},
    scale('imagenet', 0, 256, 224, 288),
    scale('folder', 64, 0, 0, 0),
    scale('folder', 64, 0, 64, 64),
    scale('tfds', 0, 0, 32, 40),  # Images keep their size.
    scale('cifar10', 0, 0, 32, 40),
    {'sharding': (('R$', (None, ('fsdp', 'tensor'), None)), ('', ()))},
  ):
    assert config_lib.validate(make(values)) is None


@pytest.mark.parametrize(
  ('check', 'argument', 'fields', 'message'),
  [
    (IMAGE, (4, 4, 1), {'name': 'bronet'}, 'kernel_size=3.*at most 2'),
    (IMAGE, (8, 8, 1), {'patch_size': 3}, 'patch_size=3.*1, 2, 4, 8'),
    (IMAGE, (8, 6, 1), {'patch_size': 4}, r'patch_size=4.*of 1, 2\.'),
    (WIDTH, 2, {'name': 'liresnet'}, 'mesh.tensor=2 .*set mesh.tensor=1'),
    (WIDTH, 2, {'parametrization': 'cayley'}, '=2 .*parametrization=cayley'),
    (WIDTH, 2, {'activation': 'minmax'}, "model.activation='minmax' pairs"),
    (IMAGE, (4, 4, 1), {'name': 'liresnet'}, None),
    (IMAGE, (8, 12, 1), {'patch_size': 4}, None),
    (WIDTH, 1, {'name': 'bronet', 'activation': 'minmax'}, None),
    (WIDTH, 2, {}, None),
  ],
)
def test_a_model_must_fit_the_images_and_the_devices(
  check, argument, fields, message
):
  model = config_lib.default_config().model
  model.update(fields)
  if message is None:
    assert check(model, argument) is None
    return
  with pytest.raises(errors.ConfigError, match=message):
    check(model, argument)
