import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import validation


def test_defaults_are_valid():
  assert validation.validate(config_lib.default_config()) is None


BAD_VALUES = [
  ('seed', -1),
  ('dataset.name', 'mnist'),
  ('dataset.data_dir', '/data'),  # Nothing reads it with digits.
  ('dataset.image_size', 64),  # digits have one size.
  ('dataset.resize', 300),
  ('dataset.resize', 0),
  ('dataset.synthetic.image_size', 64),
  ('dataset.extra_npz', 'extra.npz'),  # No ratio.
  ('dataset.extra_ratio', 3),  # No file.
  ('augment.rotate', -5.0),
  ('augment.resize.min', 224),  # No max.
  ('augment.randaugment.probability', 1.5),
  ('augment.randaugment.magnitude', 31),
  ('augment.randaugment.magnitude', 5),  # Nothing reads it at probability 0.
  ('augment.randaugment.ops', 3),
  ('augment.extra.as_real', False),  # Nothing is mixed in.
  ('augment.extra.crop_padding', 2),
  ('augment.extra.flip', True),
  ('augment.scale', 2.0),
  ('model.name', 'resnet'),
  ('model.depth', 0),
  ('model.width', 0),
  ('model.patch_size', 0),
  ('model.shift_ratio', 0.3),
  ('model.beta', -0.1),
  ('model.beta', 1.5),
  ('model.padding', 'reflect'),
  ('model.dtype', 'float16'),
  ('model.precision', 'tf32'),
  ('model.remat', 'all'),
  ('model.form', 'fast'),
  ('model.activation', 'relu'),
  ('model.parametrization', 'polar'),
  ('model.baseline.kernel_size', 5),  # Nothing reads it with lipnext.
  ('model.baseline.dense_width', 32),
  ('model.baseline.reflector_ratio', 0.5),
  ('model.baseline.reflector_ratio', 1.5),
  ('model.baseline.power_iterations', 0),
  ('optimizer.exponential', 'slow'),
  ('loss.name', 'mse'),
  ('loss.epsilon', 0.0),
  ('loss.epsilon', float('nan')),
  ('loss.epsilon_end', 0.01),
  ('loss.logit_scale', 0.0),
  ('loss.trades_weight', 2.0),  # Nothing reads it with emma.
  ('optimizer.name', 'adamw'),
  ('optimizer.learning_rate', 0.0),
  ('optimizer.lookahead_alpha', 1.5),
  ('optimizer.retraction', 'qr'),
  ('optimizer.warmup', '20'),
  ('duration', 'forever'),
  ('duration', '5 parsecs'),
  ('duration', '-3 epochs'),
  ('health.max_skipped', -1),
  ('health.loss_spike', 0.5),  # Every other loss is above half its mean.
  ('health.drift', float('nan')),
  ('batch_size', 0),
  ('eval.epsilons', ()),
  ('eval.epsilons', (-1.0,)),
  ('eval.checkpoint', 'first'),
  ('eval.split', 'train'),
  ('eval.split', 'validation'),  # Nothing is held out.
]


@pytest.mark.parametrize(('field', 'value'), BAD_VALUES)
def test_a_bad_value_is_refused_by_name(field, value):
  config = config_lib.default_config()
  with config.unlocked():
    config.update_from_flattened_dict({field: value})
  with pytest.raises(errors.ConfigError) as info:
    validation.validate(config)
  message = str(info.value)
  assert info.value.field == field
  assert repr(value) in message
  assert '\n' not in message


CONTRADICTIONS = {
  'a largest size alone': (
    {'augment.resize.max': 288},
    'augment.resize.min=0 does not go with augment.resize.max=288',
  ),
  'sizes the wrong way round': (
    {'augment.resize.min': 288, 'augment.resize.max': 224},
    'augment.resize.min=288 does not go with',
  ),
  'a field of LipNeXt with a rival': (
    {'model.name': 'liresnet', 'model.shift_ratio': 1 / 8},
    "model.shift_ratio=0.125 has no effect with model.name='liresnet'",
  ),
  'zero padding of reflectors': (
    {'model.name': 'bronet', 'model.padding': 'zero'},
    "model.padding='zero' has no effect with model.name='bronet'",
  ),
  'the reflectors of another rival': (
    {'model.name': 'liresnet', 'model.baseline.reflector_ratio': 0.5},
    'model.baseline.reflector_ratio=0.5 has no effect',
  ),
  'beta without beta-abs': (
    {'model.activation': 'minmax', 'model.beta': 0.25},
    "model.beta=0.25 has no effect with model.activation='minmax'",
  ),
  'a retraction of nothing': (
    {'model.parametrization': 'cayley', 'optimizer.retraction': 'svd'},
    "optimizer.retraction='svd' has no effect with model.name=lipnext, "
    'model.parametrization=cayley',
  ),
  'an exponential of nothing': (
    {'model.name': 'bronet', 'optimizer.exponential': 'exact'},
    "optimizer.exponential='exact' has no effect with model.name=bronet",
  ),
  'a retraction that never happens': (
    {
      'optimizer.retraction': 'svd',
      'optimizer.retraction_period': '0 epochs',
    },
    "optimizer.retraction='svd' has no effect with optimizer.retraction_period="
    "'0 epochs'; set it to its default, 'newton_schulz', or set optimizer.",
  ),
  'the weight of no lookahead': (
    {'optimizer.lookahead_alpha': 0.8, 'optimizer.lookahead_period': 0},
    'optimizer.lookahead_alpha=0.8 has no effect with '
    'optimizer.lookahead_period=0; set it to its default, 0.5, or set',
  ),
  'a working copy of nothing': (
    {
      'model.name': 'bronet',
      'model.dtype': 'bfloat16',
      'reduce_dtype': 'bfloat16',
    },
    "reduce_dtype='bfloat16' has no effect with model.name=bronet",
  ),
  'what a recipe has set, and a rival does not read': (
    {'model.name': 'bronet', 'model.remat': 'products'},
    "model.remat='products' has no effect with model.name='bronet'; set it to "
    "its default, 'none', or set model.name to 'lipnext'.",
  ),
  'a start that a map does not reach': (
    {'model.parametrization': 'block_reflector'},
    "model.m_init='identity' is out of reach of model.parametrization="
    'block_reflector; choose haar',
  ),
  'a rigorous certificate of a rival': (
    {'model.name': 'bronet', 'eval.certificate': 'rigorous'},
    "eval.certificate='rigorous' covers model.name=lipnext alone, not bronet",
  ),
  'two crops': (
    {
      'augment.resize.min': 224,
      'augment.resize.max': 288,
      'augment.crop_padding': 4,
    },
    'augment.crop_padding=4 has no effect with augment.resize.max=288',
  ),
}


@pytest.mark.parametrize('case', CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(case):
  values, message = CONTRADICTIONS[case]
  config = config_lib.default_config()
  config.update_from_flattened_dict(values)
  with pytest.raises(errors.ConfigError) as info:
    validation.validate(config)
  assert str(info.value).startswith(message)


def test_unknown_missing_and_mistyped_fields_are_refused():
  unknown = config_lib.default_config()
  unknown.model.heads = 3
  with pytest.raises(errors.ConfigError, match=r'model\.heads=3 is no config'):
    validation.validate(unknown)

  missing = config_lib.default_config()
  del missing.model.beta
  with pytest.raises(errors.ConfigError, match=r'model\.beta.*is missing'):
    validation.validate(missing)

  # A field may not change its type, an int may not become a bool either.
  for value in ('wide', True):
    mistyped = config_lib.default_config()
    del mistyped.model.width
    mistyped.model.width = value
    with pytest.raises(errors.ConfigError, match=r'model\.width.*no int'):
      validation.validate(mistyped)


def test_every_number_and_choice_has_a_bad_value_that_is_refused():
  """No field is waved through: −7 or 'x' is wrong for every one of them."""
  fields = config_lib.build_field_list(config_lib.default_config())
  free = {
    'augment.flip',  # Two values, both valid.
    'model.position',
    'model.unroll',
    'augment.extra.as_real',
    'augment.extra.flip',
    'dataset.data_dir',  # Checked against the disk by `data.sources`.
    'mesh.data',  # Checked against the devices by `make_mesh`.
    'mesh.fsdp',
    'mesh.tensor',
  }
  for field, value in fields.items():
    if field in free:
      continue
    config = config_lib.default_config()
    wrong = {str: 'x', tuple: ('x',)}.get(type(value), -7)
    wrong = float(wrong) if isinstance(value, float) else wrong
    config.update_from_flattened_dict({field: wrong})
    with pytest.raises(errors.ConfigError):
      validation.validate(config)


@pytest.mark.parametrize(
  ('argument', 'field'),
  [
    ('--config.model.dept=3', 'model.depth'),
    ('--config.loss.eps=1', 'loss.epsilon'),
    ('--config.optimiser.name=adam', 'optimizer.name'),
  ],
)
def test_a_misspelt_override_is_answered_with_the_nearest_field(
  argument, field
):
  error = validation.explain_override(['main', argument], AttributeError('x'))
  assert argument.split('=')[0] in str(error)
  assert f'did you mean {field}' in str(error)


def test_a_wrong_value_is_told_from_a_wrong_field():
  error = validation.explain_override(
    ['main', '--config.model.depth=x'], ValueError('invalid\n literal')
  )
  assert 'is no config field' not in str(error)
  assert 'invalid literal' in str(error)
