"""LiResNet against its equations in NumPy, and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax.certify import convolution
from lipnext_jax.models import baselines
from lipnext_jax.optim import orthogonal_labels
from tests import networks

IMAGE = (4, 6, 2)


def build(**fields):
  sizes = {'depth': 2, 'width': 5, 'patch_size': 2, 'dense_width': 6}
  return baselines.LiResNet(3, **(sizes | fields))


def draw(model, dtype=np.float64):
  return networks.draw(model.explicit(), IMAGE, scale=0.4, dtype=dtype)


def min_max(x):
  a, b, rest = np.split(x, [x.shape[-1] // 2, x.shape[-1] // 2 * 2], axis=-1)
  return np.concatenate([np.maximum(a, b), np.minimum(a, b), rest], -1)


def correlate(x, kernel, padding):
  mode = {'zero': 'constant', 'circular': 'wrap'}[padding]
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
  h, w = x.shape[:2]
  return sum(
    padded[s : s + h, t : t + w] @ kernel[s, t]
    for s in range(3)
    for t in range(3)
  )


def oracle(params, image, padding):
  h, w = IMAGE[0] // 2, IMAGE[1] // 2
  x = (image - 0.5).reshape(h, 2, w, 2, -1).transpose(0, 2, 1, 3, 4)
  x = x.reshape(h, w, -1)
  stem, blocks = params['stem'], params['blocks']
  name = f'conv_{padding}'
  x = correlate(x, stem[name], padding)
  x = min_max(x + stem['pos'] + stem['bias'])
  for kernel, bias in zip(blocks[name], blocks['bias'], strict=True):
    x = min_max(correlate(x, kernel, padding) + bias)
  x = min_max(params['neck']['Q'] @ x.ravel() + params['neck']['bias'])
  for q, bias in zip(
    params['dense']['Q'], params['dense']['bias'], strict=True
  ):
    x = min_max(q @ x + bias)
  kernel = params['head']['kernel']
  rows = kernel / np.linalg.norm(kernel, axis=1)[:, None]
  return rows @ x + params['head']['bias']


@pytest.mark.parametrize('padding', ['zero', 'circular'])
def test_the_forward_pass_is_its_equations(padding):
  model = build(padding=padding)
  params = draw(model)
  x = np.random.default_rng(5).uniform(size=(2, *IMAGE))
  with jax.enable_x64(True):
    got = model.explicit(jnp.float64).apply({'params': params}, jnp.asarray(x))
  expected = [oracle(params, image, padding) for image in x]
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
  params['blocks']['bias'] = -params['blocks']['bias']  # Planted.
  wrong = [oracle(params, image, padding) for image in x]
  assert np.max(np.abs(np.subtract(wrong, expected))) > 1e-3


def test_parameters_are_euclidean_and_start_well_conditioned():
  model = build(dense_depth=3)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
  params = jax.device_get(params['params'])
  assert set(jax.tree.leaves(orthogonal_labels(params))) == {'euclidean'}
  for raw in (params['neck']['Q_raw'], *params['dense']['Q_raw']):
    np.testing.assert_allclose(raw @ raw.T, np.eye(6), rtol=0, atol=1e-5)
  residual = params['blocks']['conv_zero_raw']
  norms = [convolution.zero_bound(k, (2, 3)) for k in residual]
  assert max(norms) < 2 / len(residual)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
  model = build(dtype=jnp.bfloat16)
  x = jnp.float32(np.random.default_rng(0).uniform(size=(2, *IMAGE)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  assert {a.dtype.name for a in jax.tree.leaves(shapes)} == {'float32'}
  variables = {'params': draw(model, np.float32)}

  @jax.jit
  def both(variables, x):
    wide = model.explicit().apply(variables, x)
    return model.clone(stored=True).apply(variables, x), wide

  logits, exact = both(variables, x)
  assert logits.dtype == jnp.float32
  # A few roundings of 2⁻⁹ on features of norm 3.
  np.testing.assert_allclose(logits, exact, rtol=0, atol=0.1)
  assert np.max(np.abs(logits - exact)) > 1e-5
