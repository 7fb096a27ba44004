import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax.models import registry

HIGHEST = jax.lax.Precision.HIGHEST
# {field: (value in a config, value of the model)}, none of them a default.
SHARED = {
  'depth': (5, 5),
  'width': (12, 12),
  'patch_size': (1, 1),
  'beta': (0.25, 0.25),
  'dtype': ('bfloat16', jnp.bfloat16),
  'precision': ('highest', HIGHEST),
  'activation': ('minmax', 'minmax'),
  'position': (False, False),
}
LIPNEXT = {
  'padding': ('zero', 'zero'),
  'shift_ratio': (1 / 8, 1 / 8),
  'r_init': ('identity', 'identity'),
  'm_init': ('haar', 'haar'),
  'remat': ('block', 'block'),
  'unroll': (True, True),
  'parametrization': ('cayley', 'cayley'),
  'pool': ('neck', 'neck'),
  'neck_width': (7, 7),
  'neck_depth': (1, 1),
}
BASELINES = {
  'dense_depth': (1, 1),
  'dense_width': (7, 7),
  'kernel_size': (5, 5),
}
LIRESNET = {'power_iterations': (3, 3), 'padding': ('zero', 'zero')}
BRONET = {'reflector_ratio': (0.5, 0.5)}
MODELS = {
  'lipnext': SHARED | LIPNEXT,
  'liresnet': SHARED | BASELINES | LIRESNET,
  'bronet': SHARED | BASELINES | BRONET,
}


def build(name, fields):
  c = config_lib.default_config().model
  c.name = name
  for field, (value, _) in fields.items():
    (c if field in c else c.baseline)[field] = value
  return registry.build_model(c, num_classes=3)


@pytest.mark.parametrize('name', MODELS)
def test_every_field_reaches_the_model(name):
  model, plain = build(name, MODELS[name]), build(name, {})
  for field, (_, value) in MODELS[name].items():
    assert getattr(model, field) == value != getattr(plain, field), field
  assert model.num_classes == 3


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
  fields = {'dtype': ('bfloat16', None), 'remat': ('block', None)}
  small = {'depth': (2, None), 'width': (8, None)}
  model = build('lipnext', fields | small).explicit()
  assert model.dtype == jnp.float32
  assert model.precision == HIGHEST
  images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
  jaxpr = str(jax.make_jaxpr(model.init_with_output)(jax.random.key(0), images))
  assert 'bf16' not in jaxpr
