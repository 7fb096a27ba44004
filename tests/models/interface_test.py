"""What every model offers training, evaluation and proofs; its head.

Lipschitz constants are measured: at random pairs and by gradient ascent, in
float64, whole backbones and single layers, and each check rejects planted
faults.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax.attacks import lower_bound
from lipnext_jax.certify import rigorous
from lipnext_jax.models import baselines
from lipnext_jax.models import interface
from lipnext_jax.models import parametrizations
from tests import networks

IMAGE = (6, 8, 1)
IMAGES = np.random.default_rng(1).uniform(size=(4, *IMAGE)).astype(np.float32)
SIZES = {'num_classes': 4, 'depth': 2, 'width': 8, 'patch_size': 2}
RIVAL = {**SIZES, 'dense_depth': 2, 'dense_width': 12}
NECK = {'pool': 'neck', 'neck_width': 12, 'neck_depth': 2}
MODELS = {
  'lipnext': models.LipNeXt(**SIZES, m_init='haar'),
  'minmax': models.LipNeXt(**SIZES, m_init='haar', activation='minmax'),
  'neck': models.LipNeXt(**SIZES, m_init='haar', **NECK),
  'neck cayley': models.LipNeXt(**SIZES, **NECK, parametrization='cayley'),
  'no position': models.LipNeXt(**SIZES, position=False, padding='zero'),
  **{
    name: models.LipNeXt(**SIZES, m_init='haar', parametrization=name)
    for name in parametrizations.PARAMETRIZATIONS
  },
  'liresnet': baselines.LiResNet(**RIVAL),
  'liresnet circular': baselines.LiResNet(**RIVAL, padding='circular'),
  'bronet': baselines.BRONet(**RIVAL),
}


@functools.cache
def trained(name):
  """Float32 parameters with nothing at zero or on a special point."""
  return networks.draw(MODELS[name], IMAGE, scale=0.2)


@functools.cache
def explicit(name):
  """(logits of the trained form, those of the explicit one, its parameters)."""
  model = MODELS[name]

  @jax.jit
  def both(params):
    mapped = model.explicit_params(params)
    logits = model.explicit().apply({'params': mapped}, IMAGES)
    return model.apply({'params': params}, IMAGES), logits, mapped

  return jax.device_get(both(trained(name)))


@pytest.mark.parametrize('name', MODELS)
def test_explicit_parameters_make_the_same_function(name):
  model = MODELS[name]
  trained_logits, logits, mapped = explicit(name)
  # Float32: ten layers of maps that round by 1e-6 or so each.
  np.testing.assert_allclose(logits, trained_logits, rtol=0, atol=2e-5)
  narrow = model.clone(dtype=jnp.bfloat16, precision=None)
  model = model.explicit()
  again = model.explicit_params(mapped)
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, mapped))
  assert narrow.explicit() == model == model.explicit()
  assert model.precision == jax.lax.Precision.HIGHEST
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)['params']
  assert jax.tree.map(np.shape, mapped) == jax.tree.map(np.shape, shapes)


# Above the bound by more than rounding is a fault; see `attacks.lower_bound`.
def check_constant(found, bound):
  assert max(found.backbone, found.logits) <= bound + lower_bound.ROUNDING, (
    'not Lipschitz'
  )


def search(name, params):
  return lower_bound.lipschitz_lower_bound(
    MODELS[name], params, IMAGES, restarts=8, steps=50
  )


@functools.cache
def measured(name):
  """(largest quotients found, proved bound) of the explicit model."""
  params = explicit(name)[2]
  return search(name, params), certify.lipschitz_bound(params)


@pytest.mark.parametrize('name', MODELS)
def test_no_pair_of_images_exceeds_the_bound(name):
  found, bound = measured(name)
  check_constant(found, bound)
  # What LiResNet's layers could do each for itself, they do not do together.
  assert max(found) > (0.1 if name.startswith('liresnet') else 0.5) * bound


@pytest.mark.parametrize(
  ('name', 'leaf', 'factor'),
  [
    ('liresnet', 'blocks/conv_zero', 6),
    ('bronet', 'blocks/spectrum', 2),
    ('cayley', 'blocks/M', 2),
    ('neck', 'neck/Q', 2),
    ('neck', 'dense/Q', 2),
  ],
)
def test_the_check_rejects_scaled_layers(name, leaf, factor):
  """Planted: weights that the bound was not computed from."""
  _, bound = measured(name)
  params = explicit(name)[2]
  group, leaf = leaf.split('/')
  scaled = params[group] | {leaf: np.float32(factor * params[group][leaf])}
  found = search(name, params | {group: scaled})
  with pytest.raises(AssertionError, match='not Lipschitz'):
    check_constant(found, bound)


@pytest.mark.parametrize('name', ['liresnet', 'liresnet circular'])
def test_trainings_constant_approaches_the_bound_from_below(name):
  found, bound = measured(name)
  with pytest.raises(AssertionError, match='not Lipschitz'):
    check_constant(found, 1.0)  # An assumed one is refuted.
  constant = MODELS[name].clone(power_iterations=50).lipschitz
  # Float32 estimates; the tail's Λ is 1 + 1e-5.
  assert 0.9 < jax.jit(constant)(trained(name)) / bound < 1 + 1e-5
  for orthogonal in ('lipnext', 'cayley', 'bronet'):
    assert MODELS[orthogonal].lipschitz(trained(orthogonal)) == 1


def test_baselines_have_no_rigorous_certificate():
  for name in ('liresnet', 'bronet'):
    with pytest.raises(errors.ConfigError, match='has no bound yet'):
      rigorous.rigorous_certifier(MODELS[name].explicit(), explicit(name)[2])


def test_minmax_is_certified_rigorously():
  _, logits, params = explicit('minmax')
  model = MODELS['minmax'].explicit()
  found = rigorous.rigorous_radius(model, params, IMAGES.astype(np.float64))
  kernel = models.head_kernel({'params': params})
  fast, radii = certify.certified_radius(
    logits, kernel, certify.lipschitz_bound(params)
  )
  np.testing.assert_array_equal(found.predictions, fast)
  np.testing.assert_allclose(found.radii, radii, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name', ['lipnext', 'liresnet', 'bronet'])
def test_a_position_that_is_off_has_no_gradient(name):
  model = MODELS[name].clone(position=False)

  def total(params):
    return jnp.sum(model.apply({'params': params}, IMAGES) ** 2)

  group = 'blocks' if name == 'lipnext' else 'stem'
  gradient = jax.jit(jax.grad(total))(trained(name))[group]
  assert not np.any(gradient['pos'])
  assert np.any(gradient['bias'])


@pytest.mark.parametrize('name', ['lipnext', 'neck', 'liresnet', 'bronet'])
def test_bfloat16_is_for_features_alone(name):
  """Parameters, gradients and logits are float32, and BRONet's spectra."""
  model = MODELS[name].clone(dtype=jnp.bfloat16)
  params = trained(name)
  logits = jax.jit(model.apply)({'params': params}, IMAGES)
  # Some ten roundings of 2⁻⁹ on features of norm 5, random signs.
  assert 1e-4 < np.max(np.abs(logits - explicit(name)[0])) < 0.1
  gradients = jax.grad(lambda p: jnp.sum(model.apply({'params': p}, IMAGES)))
  arrays = [
    logits,
    jax.eval_shape(model.init, jax.random.key(0), IMAGES),
    jax.eval_shape(gradients, params),
  ]
  assert {a.dtype.name for a in jax.tree.leaves(arrays)} == {'float32'}
  program = str(jax.make_jaxpr(model.apply)({'params': params}, IMAGES))
  assert ('c64' in program) == (name == 'bronet')


def test_the_head_multiplies_by_unit_rows():
  rng = np.random.default_rng(0)
  z, kernel, bias = (rng.normal(size=s) for s in ((20, 7), (5, 7), 5))
  rows = [row / math.sqrt(sum(row**2)) for row in kernel]
  wanted = z @ np.transpose(rows) + bias
  for scale in (1e-12, 1.0, 1e12):
    head = {'kernel': jnp.float32(scale * kernel), 'bias': jnp.float32(bias)}
    # A sum of 7, a root and a division: about 6 roundings of 6e-8.
    found = models.head_kernel({'params': {'head': head}})
    np.testing.assert_allclose(found, rows, rtol=4e-7)
    logits = interface.NormalizedHead(5).apply({'params': head}, jnp.float32(z))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=5e-6)
  for axis in (None, 0):  # Planted: normalised as a whole, and by columns.
    wrong = z @ (kernel / np.linalg.norm(kernel, axis=axis)).T + bias
    assert np.max(np.abs(wrong - wanted)) > 0.1
  shown = np.isnan(interface.unit_rows(head['kernel'].at[1].set(0)))
  np.testing.assert_array_equal(shown[:, 0], np.arange(5) == 1)
