import hashlib
import json

import jax
import numpy as np
import pytest

from configs import digits
from lipnext_jax import checkpoint
from lipnext_jax import config as config_lib
from lipnext_jax import errors

FIELDS = config_lib.FIELDS


@pytest.mark.parametrize(
  ('rules', 'right', 'wrong', 'remedy'),
  [
    ({'minimum': 1}, (1.0, 1e9), (0.9, -1.0), 'that is at least 1.'),
    ({'above': 0}, (1e-9, 2.0), (0.0, -1.0), 'that is above 0.'),
    ({'maximum': 0.25}, (0.0, 0.25), (0.26, -1e-9), 'that is in [0, 0.25].'),
    ({'above': 0, 'maximum': 1}, (0.1, 1.0), (0.0, 1.1), 'is in (0, 1].'),
    ({}, (0.0, 2.0**31 - 1), (2.0**31, float('inf')), 'number below 2**31.'),
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


def test_inner_rules_are_elementwise_and_odd():
  g = jax.random.normal(jax.random.key(0), (3, 4, 4))
  flat = g.reshape(-1)[::-1]
  for name, rule in config_lib.INNER_RULES.items():
    tx = rule(1e-2)
    update, minus, reversed_flat = (
      tx.update(x, tx.init(x), x)[0] for x in (g, -g, flat)
    )
    other = reversed_flat[::-1].reshape(g.shape)
    for found in (-minus, other):
      np.testing.assert_allclose(found, update, atol=1e-7, err_msg=name)


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
