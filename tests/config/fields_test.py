import hashlib
import json

import pytest

from configs import digits
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


def other_values(name):
  """Returns values that a field may have in place of its default."""
  field, found = FIELDS[name], []
  for value in (*field.choices, True, False, 0, 1, 2, 0.1, 2.0, '0 steps'):
    try:
      field.check(name, value)
    except errors.ConfigError:
      continue
    if value != field.default:
      found.append(value)
  return found


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
    for value in (FIELDS[other].default, *other_values(other))
    if (value not in read if read else value in (0, '', '0 steps'))
  )
  value = other_values(name)[0]
  error = str(refusal({other: held, name: value}))
  assert error.startswith(f'{name}={value!r} has no effect with ')
  assert f'set it to its default, {FIELDS[name].default!r}, or set ' in error


def test_the_remedy_says_what_the_other_field_may_be():
  values = {'model.name': 'bronet', 'model.padding': 'zero'}
  assert str(refusal(values)) == (
    "model.padding='zero' has no effect with model.name='bronet'; set it to "
    "its default, 'circular', or set model.name to 'lipnext' or 'liresnet'."
  )
  values = {'optimizer.lookahead_period': 0, 'optimizer.lookahead_alpha': 0.8}
  assert str(refusal(values)).endswith(', or set optimizer.lookahead_period.')


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


def test_fields_that_decide_neither_model_nor_updates_are_free():
  sections = ('checkpoint', 'eval', 'health', 'log', 'mesh', 'sharding')
  free = {
    *(name for name in FIELDS if name.split('.')[0] in sections),
    *('dataset.data_dir', 'dataset.extra_npz', 'dataset.workers'),
    'model.remat',
  }
  fixed = config_lib.fixed_fields(config_lib.default_config())
  assert fixed.keys() == FIELDS.keys() - free


def digest(fields):
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def test_the_fixed_fields_are_those_of_the_runs_that_exist():
  """Old runs could not be resumed if a name, default or `free` changed.

  A new field changes the digest, and older runs have its default.
  """
  default = config_lib.fixed_fields(config_lib.default_config())
  assert digest(default) == (
    '4f452eb7c957e4c9bc13c0a0c1240658ef5f810aedd47b36e0a7a5434d6b0107'
  )
  # The hash of a run is that of its fields off their defaults.
  config = digits.get_config('model=liresnet')
  own = config_lib.fixed_fields(config)
  changed = {name: own[name] for name in own if own[name] != default[name]}
  assert digest(changed) == checkpoint.hash_config(config)
  assert checkpoint.hash_config(config) == (
    '1e7b42ec00aea38c6dd590834375013a6331769cae5c087211792cacb10e0cf8'
  )


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
