"""The spread block; that it is the plain one over 20 steps: program_test.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import models
from lipnext_jax.models import layers
from lipnext_jax.models import sharded

AUTO = (jax.sharding.AxisType.Auto,) * 3
WIDTH = 16


def layout_of(*sizes):
  mesh = jax.make_mesh(sizes, ('data', 'fsdp', 'tensor'), AUTO)
  return sharded.Layout(mesh, ('data',), 'fsdp', 'tensor')


@pytest.mark.parametrize('padding', layers.PADDINGS)
def test_width_shards_shift_the_channels_that_they_have(padding):
  """A group of 3 channels ends inside a shard of 4, and inside a row part."""
  eye, x = jnp.eye(WIDTH), jax.random.normal(jax.random.key(0), (2, 3, 5, 16))
  block = functools.partial(
    sharded.block,
    layout_of(1, 2, 4),
    shift_ratio=3 / 16,
    activation='beta_abs',
    beta=0.3,
    padding=padding,
    dtype=jnp.float32,
    precision=None,
    form='fused',
  )
  v = jax.jit(block)(x, eye, eye, jnp.zeros(16), jnp.zeros((3, 5, 1)))
  shifted = layers.spatial_shift(layers.beta_abs(x, 0.3), 3 / 16, padding)
  np.testing.assert_array_equal(v, shifted)


def gradients(model, variables, images):
  def loss(variables):
    return jnp.sum(jnp.sin(model.apply(variables, images)))

  return jax.jit(jax.grad(loss))(variables)


@pytest.mark.parametrize(
  ('sizes', 'options'),
  [
    ((2, 2, 2), {'padding': 'zero', 'form': 'fused', 'remat': 'block'}),
    ((2, 4, 1), {'form': 'literal', 'remat': 'products'}),
    ((2, 4, 1), {'form': 'moved', 'remat': 'products'}),
  ],
)
def test_gradients_are_those_of_the_plain_model(sizes, options):
  """Float32 sums of 16 and of 128 terms in another order: about 1e-6."""
  model = models.LipNeXt(3, 2, WIDTH, 4, m_init='haar', **options)
  images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
  variables = model.init(jax.random.key(0), images)
  # Not orthogonal: a transposed matrix would be another one.
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), variables
  )
  plain = gradients(model, variables, images)
  spread = gradients(model.clone(layout=layout_of(*sizes)), variables, images)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize('remat', models.lipnext.REMAT_POLICIES)
def test_no_gathered_matrix_is_kept_for_the_backward_pass(remat):
  model = models.LipNeXt(
    3, 2, WIDTH, 4, remat=remat, layout=layout_of(1, 8, 1), form='fused'
  )
  plain = model.clone(layout=None)
  images = jnp.zeros((8, 8, 8, 1))
  variables = jax.eval_shape(plain.init, jax.random.key(0), images)
  grad = jax.grad(lambda v: model.apply(v, images).sum())
  jaxpr = jax.make_jaxpr(grad)(variables)
  # R and P in forward, and again in backward.
  assert str(jaxpr).count('= all_gather[') == 4
