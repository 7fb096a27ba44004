"""LiResNet is its equations in NumPy, and BRONet an isometry.

Their convolutions, one by one, are those of `convolutions_test`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import convolution
from lipnext_jax.models import baselines
from lipnext_jax.optim import orthogonal_labels
from tests import networks

IMAGE = (6, 6, 2)


def liresnet(**fields):
  sizes = {'depth': 2, 'width': 5, 'patch_size': 2, 'dense_width': 6}
  return baselines.LiResNet(3, **(sizes | fields))


def bronet(**fields):
  sizes = {'depth': 2, 'width': 8, 'patch_size': 2, 'dense_width': 80}
  return baselines.BRONet(3, **(sizes | fields))


def draw(model):
  return networks.draw(model, IMAGE, scale=0.4, dtype=np.float64)


def min_max(x):
  a, b, rest = np.split(x, [x.shape[-1] // 2, x.shape[-1] // 2 * 2], axis=-1)
  return np.concatenate([np.maximum(a, b), np.minimum(a, b), rest], -1)


def correlate(x, kernel, padding):
  mode = {'zero': 'constant', 'circular': 'wrap'}[padding]
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
  h, w = x.shape[:2]
  return sum(
    padded[s : s + h, t : t + w] @ kernel[s, t] for s, t in np.ndindex(3, 3)
  )


def oracle(params, image, padding):
  stem, blocks, neck, dense, head = (
    params[name] for name in ('stem', 'blocks', 'neck', 'dense', 'head')
  )
  h, w = IMAGE[0] // 2, IMAGE[1] // 2
  x = (image - 0.5).reshape(h, 2, w, 2, -1).transpose(0, 2, 1, 3, 4)
  name = f'conv_{padding}'
  x = correlate(x.reshape(h, w, -1), stem[name], padding)
  x = min_max(x + stem['pos'] + stem['bias'])
  for kernel, bias in zip(blocks[name], blocks['bias'], strict=True):
    x = min_max(correlate(x, kernel, padding) + bias)
  x = min_max(neck['Q'] @ x.ravel() + neck['bias'])
  for q, bias in zip(dense['Q'], dense['bias'], strict=True):
    x = min_max(q @ x + bias)
  rows = head['kernel'] / np.linalg.norm(head['kernel'], axis=1)[:, None]
  return rows @ x + head['bias']


@pytest.mark.parametrize('padding', ['zero', 'circular'])
def test_the_forward_pass_of_liresnet_is_its_equations(padding):
  model = liresnet(padding=padding)
  params = draw(model.explicit())
  x = np.random.default_rng(5).uniform(size=IMAGE)
  with jax.enable_x64(True):
    wide = model.explicit(jnp.float64)
    got = wide.apply({'params': params}, jnp.asarray(x[None]))[0]
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
  """8 values a patch <= 8 channels, 72 features <= 80."""
  model = bronet()
  check_isometry(model, draw(model))
  for cut in (bronet(width=7), bronet(dense_width=20)):  # The stem; the neck.
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


def test_parameters_are_euclidean_and_start_as_documented():
  model = liresnet(dense_depth=3)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
  params = jax.device_get(params['params'])
  assert set(jax.tree.leaves(orthogonal_labels(params))) == {'euclidean'}
  for raw in (params['neck']['Q_raw'], *params['dense']['Q_raw']):
    np.testing.assert_allclose(raw @ raw.T, np.eye(6), rtol=0, atol=1e-5)
  residual = params['blocks']['conv_zero_raw']
  norms = [convolution.zero_bound(k, (3, 3)) for k in residual]
  assert max(norms) < 2 / len(residual)

  params = draw(bronet(width=16, dense_width=20))
  assert set(jax.tree.leaves(orthogonal_labels(params))) == {'euclidean'}
  assert jax.tree.map(np.shape, params) == {
    'stem': {'spectrum_raw': (3, 3, 16, 4), 'pos': (3, 3, 1), 'bias': (16,)},
    'blocks': {'spectrum_raw': (2, 3, 3, 16, 4), 'bias': (2, 16)},
    'neck': {'Q_raw': (144, 5), 'bias': (20,)},
    'dense': {'Q_raw': (2, 20, 5), 'bias': (2, 20)},
    'head': {'kernel': (3, 20), 'bias': (3,)},
  }
