import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import models
from lipnext_jax.models import registry


def other_value(field):
  """A valid value that is not the default."""
  if field.choices:
    return max({*field.choices} - {field.default})
  if isinstance(field.default, bool):
    return not field.default
  kind = type(field.default)
  return field.default / 2 if kind is float else field.default + 1


@pytest.mark.parametrize('name', models.MODELS)
def test_every_field_that_is_read_with_a_model_reaches_it(name):
  config = config_lib.default_config()
  config.model.name = name
  plain = registry.build_model(config.model, num_classes=3)
  values = {
    field: other_value(definition)
    for field, definition in config_lib.FIELDS.items()
    if field.startswith('model.') and field != 'model.name'
    if name in definition.only_with.get('model.name', models.MODELS)
  }
  config.update_from_flattened_dict(values)
  model = registry.build_model(config.model, num_classes=3)
  assert model.num_classes == 3
  values['model.dtype'] = config_lib.DTYPES[values['model.dtype']]
  values['model.precision'] = config_lib.PRECISIONS[values['model.precision']]
  for field, value in values.items():
    attribute = field.split('.')[-1]
    given = getattr(model, attribute)
    assert given == value != getattr(plain, attribute), field
  assert len(values) >= 10
