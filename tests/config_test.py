import hashlib
import json

import pytest

from configs import cifar10
from configs import digits
from configs import imagenet_1b
from lipnext_jax import checkpoint
from lipnext_jax import config as config_lib
from lipnext_jax import errors

FIELDS = config_lib.FIELDS


def refusal(values):
  """Returns the error for the default config with these values."""
  config = config_lib.default_config()
  with config.unlocked():
    config.update_from_flattened_dict(values)
  with pytest.raises(errors.ConfigError) as info:
    config_lib.validate(config)
  assert '\n' not in str(info.value)
  return info.value


def test_defaults_are_valid_and_plain_data():
  config_lib.validate(config_lib.default_config())
  plain = (bool, int, float, str, tuple)
  assert all(isinstance(field.default, plain) for field in FIELDS.values())


# Further values than those of `wrong_value`.
BAD_VALUES = [
  ('dataset.data_dir', '/data'),  # Nothing reads it with digits.
  ('dataset.image_size', 64),  # digits have one size.
  ('dataset.resize', 300),
  ('dataset.resize', -1),
  ('dataset.set_name', 'mnist'),  # digits do not come from TFDS.
  ('dataset.skip_bad', True),
  ('dataset.test_share', 0.0),
  ('dataset.test_share', 0.6),
  ('dataset.split_seed', -1),
  ('dataset.synthetic.image_size', 64),
  ('dataset.extra_npz', 'extra.npz'),  # No ratio.
  ('dataset.extra_ratio', 3),  # No file.
  ('augment.randaugment.probability', 1.5),
  ('augment.randaugment.magnitude', 31),
  ('augment.randaugment.magnitude', 5),  # Nothing reads it at probability 0.
  ('augment.randaugment.ops', 3),
  ('augment.extra.as_real', False),  # Nothing is mixed in.
  ('augment.extra.crop_padding', 2),
  ('augment.extra.flip', True),
  ('augment.scale', 2.0),
  ('model.depth', 0),
  ('model.shift_ratio', 0.3),
  ('model.beta', 1.5),
  ('model.baseline.kernel_size', 5),  # Nothing reads it with lipnext.
  ('model.baseline.reflector_ratio', 1.5),
  ('loss.epsilon', 0.0),
  ('loss.epsilon', float('nan')),
  ('loss.trades_weight', 2.0),  # Nothing reads it with emma.
  ('optimizer.lookahead_alpha', 1.5),
  ('optimizer.warmup', '20'),
  ('duration', '5 parsecs'),
  ('duration', '-3 epochs'),
  ('health.drift', float('nan')),
  ('eval.epsilons', ()),
]
FREE = {
  'augment.flip',  # Two values, both valid.
  'model.position',
  'model.unroll',
  'augment.extra.as_real',
  'augment.extra.flip',
  'dataset.skip_bad',
  'dataset.data_dir',  # Checked against the disk by `data.sources`.
  'sharding',  # Checked rule by rule: validation_test.
}


def wrong_value(name):
  wrong = {str: 'x', tuple: ('x',), int: -7, float: -7.0}
  return wrong[type(FIELDS[name].default)]


@pytest.mark.parametrize(
  ('field', 'value'),
  BAD_VALUES
  + [(name, wrong_value(name)) for name in sorted(set(FIELDS) - FREE)],
)
def test_a_bad_value_is_refused_by_name(field, value):
  error = refusal({field: value})
  assert error.field == field
  assert repr(value) in str(error)


@pytest.mark.parametrize(
  ('rules', 'right', 'wrong', 'remedy'),
  [
    ({'minimum': 1}, (1.0, 1e9), (0.9, -1.0), 'that is at least 1.'),
    ({'above': 0}, (1e-9, 2.0), (0.0, -1.0), 'that is above 0.'),
    ({'maximum': 0.25}, (0.0, 0.25), (0.26, -1e-9), 'that is in [0, 0.25].'),
    ({'above': 0, 'maximum': 1}, (0.1, 1.0), (0.0, 1.1), 'is in (0, 1].'),
    ({}, (0.0, 2.0**31 - 1), (2.0**31, float('inf')), 'number below 2**31.'),
    ({}, (0.0,), (float('nan'),), 'that is at least 0.'),
  ],
)
def test_bounds_include_what_they_say(rules, right, wrong, remedy):
  field = config_lib.Field(0.5, 'A number.', **rules)
  for value in right:
    field.check('a', value)
  for value in wrong:
    with pytest.raises(errors.ConfigError) as info:
      field.check('a', value)
    assert str(info.value).endswith(remedy)


# (values whose last field has no effect, field that decides so). registry_test
# has those of models.
UNREAD = [
  ({'model.name': 'liresnet', 'model.shift_ratio': 1 / 8}, 'model.name'),
  ({'model.activation': 'minmax', 'model.beta': 0.25}, 'model.activation'),
  (
    {'model.parametrization': 'cayley', 'optimizer.retraction': 'svd'},
    'model.parametrization',
  ),
  ({'model.name': 'bronet', 'optimizer.exponential': 'exact'}, 'model.name'),
  (
    {'optimizer.retraction_period': '0 epochs', 'optimizer.retraction': 'svd'},
    'optimizer.retraction_period',
  ),
  (
    {'optimizer.lookahead_period': 0, 'optimizer.lookahead_alpha': 0.8},
    'optimizer.lookahead_period',
  ),
  ({'reduce_dtype': 'bfloat16'}, 'model.dtype'),
  ({'eval.split': 'validation'}, 'dataset.holdout'),
  ({'model.name': 'bronet', 'eval.certificate': 'rigorous'}, 'model.name'),
  (
    {'augment.resize.max': 288, 'augment.crop_padding': 4},
    'augment.resize.max',
  ),
]


@pytest.mark.parametrize(('values', 'other'), UNREAD)
def test_a_field_that_nothing_reads_is_refused(values, other):
  *_, (name, value) = values.items()
  held = values.get(other, FIELDS[other].default)
  start = f'{name}={value!r} has no effect with {other}={held!r}; set it to its'
  assert str(refusal(values)).startswith(start)


def test_the_remedy_is_the_default_or_what_the_other_field_may_be():
  values = {'model.name': 'bronet', 'model.padding': 'zero'}
  assert str(refusal(values)).endswith(
    "; set it to its default, 'circular', or set model.name to 'lipnext' or "
    "'liresnet'."
  )
  values = {'optimizer.lookahead_period': 0, 'optimizer.lookahead_alpha': 0.8}
  assert str(refusal(values)).endswith(
    '; set it to its default, 0.5, or set optimizer.lookahead_period.'
  )


def test_a_field_goes_with_values_that_the_other_field_can_have():
  for field in FIELDS.values():
    for other, values in field.only_with.items():
      for value in values:
        FIELDS[other].check(other, value)


def test_unknown_missing_and_mistyped_fields_are_refused():
  unknown = config_lib.default_config()
  unknown.model.heads = 3
  with pytest.raises(errors.ConfigError, match=r'model\.heads=3 is not a c'):
    config_lib.validate(unknown)

  missing = config_lib.default_config()
  del missing.model.beta
  with pytest.raises(errors.ConfigError, match=r'model\.beta.*is missing'):
    config_lib.validate(missing)

  # A field may not change its type, an int may not become a bool either.
  for value in ('wide', True):
    mistyped = config_lib.default_config()
    del mistyped.model.width
    mistyped.model.width = value
    with pytest.raises(errors.ConfigError, match=r'model\.width.*type int'):
      config_lib.validate(mistyped)


def test_fixed_fields_are_exactly_those_that_are_not_free():
  before = config_lib.fixed_fields(config_lib.default_config())
  for name, field in FIELDS.items():
    config = config_lib.default_config()
    other = {bool: not field.default, tuple: (1.0,), str: 'other'}
    value = other.get(type(field.default), 7)
    config.update_from_flattened_dict({name: value})
    assert (config_lib.fixed_fields(config) == before) == field.free, name
  sections = ('checkpoint', 'eval', 'health', 'log', 'mesh', 'sharding')
  assert {name for name in FIELDS if FIELDS[name].free} == {
    *(name for name in FIELDS if name.split('.')[0] in sections),
    *('dataset.data_dir', 'dataset.extra_npz', 'dataset.workers'),
  }


def digest(fields):
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def test_the_fixed_fields_are_those_of_the_runs_that_exist():
  """Old runs could not be resumed if a name, default or `free` changed.

  A new field changes the digest, and older runs have its default. The former
  default of `dataset.resize` is tested in tests/checkpoint/workdir_test.py.
  """
  assert digest(config_lib.fixed_fields(config_lib.default_config())) == (
    '4bb70416c2aade847d9cae50cbcb88996226b058ae9cfa4412ab8daa5330cd7e'
  )


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    (
      digits.get_config('model=liresnet'),
      '1e7b42ec00aea38c6dd590834375013a6331769cae5c087211792cacb10e0cf8',
    ),
    (
      cifar10.get_config('L32W1024'),
      'fb0047e1d758f86789a4f82b3e9ccaf83b19ff4cc14de2301d68477b85071697',
    ),
    (
      imagenet_1b.get_config('eps1'),
      '5c2b0b5b9bc4cbac7c6288cff873c5152d7857e550adc1ef416bd8cfbdf1d688',
    ),
  ],
)
def test_the_hash_of_a_run_is_that_of_its_fields_off_their_defaults(
  config, expected
):
  default = config_lib.fixed_fields(config_lib.default_config())
  own = config_lib.fixed_fields(config)
  changed = {name: own[name] for name in own if own[name] != default[name]}
  changed.pop('dataset.resize', None)  # 256 was its default.
  assert digest(changed) == expected == checkpoint.hash_config(config)


def test_a_description_holds_every_field_with_its_value_and_meaning():
  lines = config_lib.describe(digits.get_config()).splitlines()
  text = ' '.join(' '.join(lines).split())
  for name, field in FIELDS.items():
    assert any(line.startswith(f'{name} = ') for line in lines)
    assert field.meaning in text
    assert field.meaning.endswith('.')
  assert 'model.width = 64  (default: 1024)' in lines
  assert 'model.beta = 0.5' in lines
  assert '    Channels, C. At least 1.' in lines
  for rule in (
    'One of cross_entropy, emma,',
    "Only with model.name='lipnext' or 'liresnet'.",
    'Only with dataset.extra_ratio.',
  ):
    assert rule in text
