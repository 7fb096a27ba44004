"""BRONet is an isometry, and what it is made of.

Its layers, one by one, are those of `convolutions_test` and `dense_test`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.models import baselines
from lipnext_jax.optim import orthogonal_labels
from tests import networks

IMAGE = (6, 8, 1)
SIZES = {'depth': 2, 'width': 8, 'patch_size': 2, 'dense_width': 200}


def build(**fields):
  return baselines.BRONet(3, **(SIZES | fields))


def draw(model):
  return networks.draw(model, IMAGE, dtype=np.float64)


@functools.cache
def compiled(model):
  """(parameters, image) → Jacobian of what the head receives, in float64."""
  d = model.dense_width
  wide = model.clone(num_classes=d, dtype=jnp.float64)
  head = {'kernel': np.eye(d), 'bias': np.zeros(d)}

  def features(x, params):
    return wide.apply({'params': params | {'head': head}}, x[None])[0]

  return jax.jit(lambda params, x: jax.jacfwd(features)(x, params))


def check_isometry(model, params):
  """The Jacobian of the backbone has orthonormal columns: norms stay."""
  x = np.random.default_rng(3).uniform(size=IMAGE)
  with jax.enable_x64(True):
    found = np.asarray(compiled(model)(params, jnp.asarray(x)))
  values = np.linalg.svd(found.reshape(len(found), -1), compute_uv=False)
  assert values[0] <= 1 + 1e-10, 'stretches'
  np.testing.assert_allclose(values, 1, rtol=0, atol=1e-10)


def test_the_backbone_is_an_isometry_where_nothing_is_cut():
  """4 pixels a patch <= 8 channels, 96 features <= 200."""
  model = build()
  check_isometry(model, draw(model))
  for cut in (build(width=3), build(dense_width=20)):  # In the stem; the neck.
    with pytest.raises(AssertionError, match='Not equal'):  # Norms shrink.
      check_isometry(cut, draw(cut))
  with jax.enable_x64(True):
    params = jax.device_get(jax.jit(model.explicit_params)(draw(model)))
  check_isometry(model.explicit(), params)
  spectrum = params['blocks']['spectrum'].copy()
  spectrum[1, 0, 1] *= 1.001  # Planted.
  params['blocks']['spectrum'] = spectrum
  with pytest.raises(AssertionError, match='stretches'):
    check_isometry(model.explicit(), params)


def test_parameters_are_euclidean_and_small():
  model = build(width=16, dense_width=20)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *IMAGE))
  )['params']
  assert set(jax.tree.leaves(orthogonal_labels(shapes))) == {'euclidean'}
  assert jax.tree.map(lambda s: s.shape, shapes) == {
    'stem': {'spectrum_raw': (3, 3, 16, 4), 'pos': (3, 4, 1), 'bias': (16,)},
    'blocks': {'spectrum_raw': (2, 3, 3, 16, 4), 'bias': (2, 16)},
    'neck': {'Q_raw': (192, 5), 'bias': (20,)},
    'dense': {'Q_raw': (2, 20, 5), 'bias': (2, 20)},
    'head': {'kernel': (3, 20), 'bias': (3,)},
  }


def test_reflectors_run_in_float32_when_the_rest_is_bfloat16():
  model = build(dtype=jnp.bfloat16, dense_width=20)
  x = jnp.zeros((2, *IMAGE))
  logits, variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), x
  )
  assert logits.dtype == jnp.float32
  text = str(jax.make_jaxpr(model.apply)(variables, x))
  assert 'c64' in text
  assert 'bf16' in text
