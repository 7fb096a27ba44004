import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax.models import registry

# Values in a config, none of them a default.
SHARED = {
  'depth': 5,
  'width': 12,
  'patch_size': 1,
  'beta': 0.25,
  'dtype': 'bfloat16',
  'precision': 'highest',
  'activation': 'minmax',
  'position': False,
}
LIPNEXT = {
  'padding': 'zero',
  'shift_ratio': 1 / 8,
  'r_init': 'identity',
  'm_init': 'haar',
  'remat': 'block',
  'unroll': True,
  'parametrization': 'cayley',
  'pool': 'neck',
  'neck_width': 7,
  'neck_depth': 1,
}
BASELINES = {'dense_depth': 1, 'dense_width': 7, 'kernel_size': 5}
MODELS = {
  'lipnext': SHARED | LIPNEXT,
  'liresnet': SHARED | BASELINES | {'power_iterations': 3, 'padding': 'zero'},
  'bronet': SHARED | BASELINES | {'reflector_ratio': 0.5},
}


def build(name, fields):
  c = config_lib.default_config().model
  c.name = name
  for field, value in fields.items():
    (c if field in c else c.baseline)[field] = value
  return registry.build_model(c, num_classes=3)


@pytest.mark.parametrize('name', MODELS)
def test_every_field_reaches_the_model(name):
  model, plain = build(name, MODELS[name]), build(name, {})
  assert (model.num_classes, model.dtype) == (3, jnp.bfloat16)
  assert model.precision == jax.lax.Precision.HIGHEST
  for field, value in MODELS[name].items():
    given = getattr(model, field)
    assert given != getattr(plain, field), field
    assert field in ('dtype', 'precision') or given == value, field


def test_every_field_of_a_model_is_among_these():
  """The fields of the config that are read with each model."""
  for name, tested in MODELS.items():
    read = {
      field.split('.')[-1]
      for field in config_lib.FIELDS
      if field.startswith('model.') and field != 'model.name'
      if name in config_lib.FIELDS[field].only_with.get('model.name', MODELS)
    }
    assert read == set(tested)


def test_evaluation_is_float32_at_highest_precision():
  fields = {'dtype': 'bfloat16', 'remat': 'block', 'depth': 2, 'width': 8}
  model = build('lipnext', fields).explicit()
  assert model.dtype == jnp.float32
  assert model.precision == jax.lax.Precision.HIGHEST
  images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
  jaxpr = str(jax.make_jaxpr(model.init_with_output)(jax.random.key(0), images))
  assert 'bf16' not in jaxpr
