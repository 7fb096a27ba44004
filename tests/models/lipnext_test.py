"""LipNeXt as a whole: its products, its start, its size.

That it is the paper's function is in `block_test`, its constant in
`interface_test`.
"""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from lipnext_jax.models import LipNeXt
from tests import networks

IMAGE, DEPTH, WIDTH = (8, 12, 3), 3, 16


def build(**options):
  sizes = {'depth': DEPTH, 'width': WIDTH, 'patch_size': 2}
  return LipNeXt(4, **sizes | {'m_init': 'haar'} | options)


def random_params(model):
  return networks.draw(model, IMAGE, scale=0.3)


def images():
  return np.random.default_rng(7).uniform(size=(3, *IMAGE)).astype(np.float32)


def test_products_are_in_bf16_but_for_the_head():
  model = build(dtype=jnp.bfloat16)
  params, x = random_params(model), images()
  jaxpr = jax.make_jaxpr(model.apply)({'params': params}, x)
  *inner, head = networks.dots(jaxpr.jaxpr)
  assert {str(v.aval.dtype) for e in inner for v in e.invars} == {'bfloat16'}
  assert {str(v.aval.dtype) for v in head.invars} == {'float32'}


def test_a_nan_pixel_reaches_the_logits():
  model, x = build(), images()
  x[1, 0, 0, 0] = np.nan
  f = np.asarray(jax.jit(model.apply)({'params': random_params(model)}, x))
  np.testing.assert_array_equal(np.isnan(f).all(axis=1), [False, True, False])


@pytest.mark.parametrize('shift_ratio', [1 / 8, 0.0])
def test_second_derivatives_are_differences_of_gradients(shift_ratio):
  with jax.enable_x64(True):
    model = build(dtype=jnp.float64, shift_ratio=shift_ratio)
    params, x = random_params(model), images().astype(np.float64)

    @jax.jit
    @jax.grad
    def gradient(x):
      return jnp.sum(jnp.sin(model.apply({'params': params}, x)))

    # Differences of order step², and rounding over the step.
    jax.test_util.check_grads(
      gradient, (x,), order=1, modes=['rev'], eps=1e-5, atol=1e-7, rtol=0
    )


@pytest.mark.parametrize(('pool', 'sees'), [('l2', False), ('neck', True)])
def test_a_neck_sees_places_and_signs_and_pooling_does_not(pool, sees):
  """On a grid without edges, moved images have moved tokens."""
  model, x = build(pool=pool, neck_width=12, beta=0.0), images()
  params = random_params(model)
  params['blocks']['pos'] *= 0
  forward = jax.jit(model.apply)
  still = forward({'params': params}, x)
  moved = forward({'params': params}, np.roll(x, 2, axis=1))
  assert (np.max(np.abs(moved - still)) > 1e-3) == sees
  for leaf in ('M', 'bias'):
    params['blocks'][leaf][-1] *= -1
  flipped = forward({'params': params}, x)
  assert (np.max(np.abs(flipped - still)) > 1e-3) == sees


def test_init_starts_as_documented():
  with pytest.raises(ValueError, match="pool='mean' must be one of"):
    build(pool='mean').init(jax.random.key(0), images())
  model = build(m_init='identity')
  params = jax.jit(model.init)(jax.random.key(0), images())
  blocks = params['params']['blocks']
  np.testing.assert_array_equal(blocks['M'], np.stack([np.eye(16)] * 3))
  assert not np.any(blocks['bias'])
  assert not np.any(blocks['pos'])
  for i, r in enumerate(blocks['R']):
    np.testing.assert_allclose(r @ r.T, np.eye(8), rtol=0, atol=2e-6)
    for other in blocks['R'][:i]:  # Every block draws its own.
      assert np.max(np.abs(r - other)) > 0.1


def test_program_does_not_grow_with_depth():
  def lines(depth):
    model = build(depth=depth)
    gradient = jax.grad(lambda p: jnp.sum(model.apply({'params': p}, images())))
    return str(jax.make_jaxpr(gradient)(random_params(model))).count('\n')

  assert lines(4) == lines(64) > 100


def test_parameters_are_laid_out_and_counted_as_documented():
  model = LipNeXt(num_classes=1000, depth=32, width=4096, patch_size=14)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )['params']
  assert jax.tree.map(lambda a: a.shape, shapes) == {
    'stem': {'Q': (4096, 4096), 'bias': (4096,)},
    'blocks': {
      'R': (32, 2048, 4096),
      'M': (32, 4096, 4096),
      'bias': (32, 4096),
      'pos': (32, 16, 16, 1),
    },
    'head': {'kernel': (1000, 4096), 'bias': (1000,)},
  }
