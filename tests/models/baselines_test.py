"""LiResNet is its equations, and BRONet an isometry.

Patches, activations and convolutions have their own tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import convolution
from lipnext_jax.models import baselines
from lipnext_jax.models import convolutions
from lipnext_jax.models import layers
from lipnext_jax.optim import orthogonal_labels
from tests import networks

IMAGE = (6, 6, 2)
SIZES = {'num_classes': 3, 'depth': 2, 'patch_size': 2}
LIRESNET = baselines.LiResNet(**SIZES, width=5, dense_width=6)
# 8 values a patch <= 8 channels, 72 features <= 80: nothing is cut.
BRONET = baselines.BRONet(**SIZES, width=8, dense_width=80)


def draw(model):
  return networks.draw(model, IMAGE, scale=0.4, dtype=np.float64)


@jax.numpy_rank_promotion('allow')
def oracle(params, image, padding):
  stem, blocks, neck, dense, head = (
    params[name] for name in ('stem', 'blocks', 'neck', 'dense', 'head')
  )
  name = f'conv_{padding}'
  x = layers.patchify(image[None] - 0.5, 2)
  x = convolutions.convolve(x, stem[name], padding)
  x = layers.min_max(x + stem['pos'] + stem['bias'])
  for kernel, bias in zip(blocks[name], blocks['bias'], strict=True):
    x = layers.min_max(convolutions.convolve(x, kernel, padding) + bias)
  x = layers.min_max(neck['Q'] @ x.ravel() + neck['bias'])
  for q, bias in zip(dense['Q'], dense['bias'], strict=True):
    x = layers.min_max(q @ x + bias)
  rows = head['kernel'] / np.linalg.norm(head['kernel'], axis=1)[:, None]
  return rows @ x + head['bias']


@pytest.mark.parametrize('padding', ['zero', 'circular'])
def test_the_forward_pass_of_liresnet_is_its_equations(padding):
  model = LIRESNET.clone(padding=padding).explicit(jnp.float64)
  x = np.random.default_rng(5).uniform(size=IMAGE)
  with jax.enable_x64(True):
    params = draw(model)
    got = model.apply({'params': params}, x[None])[0]
    expected = oracle(params, x, padding)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    for group, leaf in (('blocks', 'bias'), ('dense', 'Q')):  # Planted.
      backwards = params[group] | {leaf: params[group][leaf][::-1]}
      wrong = oracle(params | {group: backwards}, x, padding)
      assert np.max(np.abs(wrong - expected)) > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def jacobian(model, params, x):
  """The derivative of what the head receives, [d, H, W, ch], in float64."""
  d = model.dense_width
  wide = model.clone(num_classes=d, dtype=jnp.float64)
  variables = {
    'params': params | {'head': {'kernel': jnp.eye(d), 'bias': jnp.zeros(d)}}
  }
  return jax.jacfwd(lambda x: wide.apply(variables, x[None])[0])(x)


def check_isometry(model, params):
  """The Jacobian of the backbone has orthonormal columns: norms stay."""
  x = np.random.default_rng(3).uniform(size=IMAGE)
  with jax.enable_x64(True):
    found = np.asarray(jacobian(model, params, jnp.asarray(x)))
  found = found.reshape(len(found), -1)
  values = np.linalg.eigvalsh(found.T @ found)
  assert values[-1] <= 1 + 1e-10, 'stretches'
  np.testing.assert_allclose(values, 1, rtol=0, atol=1e-10)


def test_bronet_is_an_isometry_where_nothing_is_cut():
  check_isometry(BRONET, draw(BRONET))
  for fields in ({'width': 7}, {'dense_width': 20}):  # The stem; the neck.
    cut = BRONET.clone(**fields)
    with pytest.raises(AssertionError, match='Not equal'):  # Norms shrink.
      check_isometry(cut, draw(cut))
  with jax.enable_x64(True):
    params = jax.jit(BRONET.explicit_params)(draw(BRONET))
    check_isometry(BRONET.explicit(), params)
    spectrum = params['blocks']['spectrum']
    params['blocks']['spectrum'] = spectrum.at[1, 0, 1].mul(1.001)  # Planted.
  with pytest.raises(AssertionError, match='stretches'):
    check_isometry(BRONET.explicit(), params)


def test_parameters_are_euclidean_and_start_as_documented():
  model = LIRESNET.clone(dense_depth=3)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
  params = jax.device_get(params['params'])
  assert set(jax.tree.leaves(orthogonal_labels(params))) == {'euclidean'}
  for raw in (params['neck']['Q_raw'], *params['dense']['Q_raw']):
    np.testing.assert_allclose(raw @ raw.T, np.eye(6), rtol=0, atol=1e-5)
  residual = params['blocks']['conv_zero_raw']
  norms = [convolution.zero_bound(k, (3, 3)) for k in residual]
  assert max(norms) < 2 / len(residual)

  params = draw(BRONET.clone(width=16, dense_width=20))
  assert set(jax.tree.leaves(orthogonal_labels(params))) == {'euclidean'}
  assert jax.tree.map(np.shape, params) == {
    'stem': {'spectrum_raw': (3, 3, 16, 4), 'pos': (3, 3, 1), 'bias': (16,)},
    'blocks': {'spectrum_raw': (2, 3, 3, 16, 4), 'bias': (2, 16)},
    'neck': {'Q_raw': (144, 5), 'bias': (20,)},
    'dense': {'Q_raw': (2, 20, 5), 'bias': (2, 20)},
    'head': {'kernel': (3, 20), 'bias': (3,)},
  }
