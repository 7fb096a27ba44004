import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import validation
from lipnext_jax.models import registry


def build(**fields):
  c = config_lib.default_config().model
  c.update({'depth': 2, 'width': 8, 'patch_size': 2} | fields)
  return registry.build_model(c, num_classes=3)


FIELDS = {
  'depth': 5,
  'width': 16,
  'patch_size': 4,
  'shift_ratio': 1 / 8,
  'beta': 0.25,
  'padding': 'zero',
  'r_init': 'identity',
  'm_init': 'haar',
  'dtype': 'bfloat16',
  'precision': 'highest',
  'remat': 'block',
  'unroll': True,
  'activation': 'minmax',
  'position': False,
  'parametrization': 'cayley',
}
READ_AS = {'bfloat16': jnp.bfloat16, 'highest': jax.lax.Precision.HIGHEST}


def test_every_model_field_reaches_the_model():
  assert set(config_lib.default_config().model) == {*FIELDS, 'name', 'baseline'}
  for field, value in FIELDS.items():
    model = build(**{field: value})
    assert getattr(model, field) == READ_AS.get(value, value), field
    assert getattr(build(), field) != READ_AS.get(value, value), field
    assert model.num_classes == 3


SHARED = ('depth', 'width', 'patch_size', 'beta', 'activation', 'position')
RIVALS = {
  'liresnet': ('dense_depth', 'dense_width', 'kernel_size', 'power_iterations'),
  'bronet': ('dense_depth', 'dense_width', 'kernel_size', 'reflector_ratio'),
}


@pytest.mark.parametrize('name', RIVALS)
def test_every_field_of_a_rival_reaches_it(name):
  c = config_lib.default_config().model
  c.update({'name': name, 'dtype': 'bfloat16', 'precision': 'highest'})
  c.update({'depth': 3, 'width': 12, 'patch_size': 1, 'beta': 0.25})
  c.update({'activation': 'minmax', 'position': False})
  c.baseline.update({'dense_depth': 1, 'dense_width': 7, 'kernel_size': 5})
  c.baseline.update({'power_iterations': 3, 'reflector_ratio': 0.5})
  model = registry.build_model(c, num_classes=3)
  for field in SHARED:
    assert getattr(model, field) == c[field], field
  for field in RIVALS[name]:
    assert getattr(model, field) == c.baseline[field], field
  assert model.dtype == jnp.bfloat16
  assert model.precision == jax.lax.Precision.HIGHEST
  assert model.num_classes == 3
  assert set().union(*RIVALS.values()) == set(c.baseline)
  if name == 'liresnet':
    c.padding = 'zero'
    assert registry.build_model(c, num_classes=3).padding == 'zero'


def test_a_reflector_larger_than_the_grid_is_refused():
  c = config_lib.default_config().model
  c.update({'name': 'bronet', 'patch_size': 4})
  with pytest.raises(errors.ConfigError, match=r'kernel_size=3.*at most 2'):
    validation.check_image(c, (8, 8, 1))
  c.name = 'liresnet'
  validation.check_image(c, (8, 8, 1))


def test_evaluation_is_float32_at_highest_precision():
  model = registry.for_evaluation(build(dtype='bfloat16', remat='block'))
  assert model.dtype == jnp.float32
  assert model.precision == jax.lax.Precision.HIGHEST
  images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
  jaxpr = str(jax.make_jaxpr(model.init_with_output)(jax.random.key(0), images))
  assert 'bf16' not in jaxpr


def test_a_patch_that_does_not_divide_lists_those_that_do():
  c = config_lib.default_config().model
  c.patch_size = 3
  with pytest.raises(errors.ConfigError, match=r'patch_size=3.*1, 2, 4, 8'):
    validation.check_image(c, (8, 8, 1))
  c.patch_size = 4
  validation.check_image(c, (8, 12, 1))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'bronet'}, r'mesh\.tensor=2 splits no work of model.name=bronet'),
    ({'name': 'liresnet'}, r'mesh\.tensor=2 .*set mesh\.tensor=1'),
    ({'parametrization': 'cayley'}, r'mesh\.tensor=2 .*parametrization=cayley'),
    ({'activation': 'minmax'}, r"model\.activation='minmax' pairs channels"),
  ],
)
def test_what_split_channels_do_not_know_is_refused(fields, message):
  c = config_lib.default_config().model
  c.update(fields)
  with pytest.raises(errors.ConfigError, match=message):
    validation.check_width_sharding(c, 2)
  validation.check_width_sharding(c, 1)
