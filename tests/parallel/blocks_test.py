"""The block on a mesh; that it is the plain one over 20 steps: program_test."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from lipnext_jax import models
from lipnext_jax.models import layers
from lipnext_jax.models.block import ONE_DEVICE
from lipnext_jax.parallel import blocks
from tests import networks

AUTO = (jax.sharding.AxisType.Auto,) * 3
WIDTH = 16


def layout_of(*sizes):
  mesh = jax.make_mesh(sizes, ('data', 'fsdp', 'tensor'), AUTO)
  return blocks.Layout(mesh, ('data',), 'fsdp', 'tensor')


def gradients(model, variables, images):
  def loss(variables):
    return jnp.sum(jnp.sin(model.apply(variables, images)))

  return jax.jit(jax.grad(loss))(variables)


def check_gradients(sizes, **options):
  """Float32 sums of 16 and of 128 terms in another order: about 1e-6."""
  model = models.LipNeXt(3, 2, WIDTH, 4, **options)
  images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
  params = networks.draw(model, images.shape[1:], scale=0.1)
  # Not orthogonal: a transposed matrix would be another one.
  rng = np.random.default_rng(3)
  variables = {
    'params': jax.tree.map(
      lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), params
    )
  }
  plain = gradients(model, variables, images)
  spread = gradients(model.clone(devices=layout_of(*sizes)), variables, images)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(a).max()))


# k = 12 rows divide over no axis of 8; β cuts inside a device's share.
UNEVEN = {'beta': 0.3, 'shift_ratio': 3 / 16}


@pytest.mark.slow  # Two models are compiled, one of them for a mesh.
@pytest.mark.parametrize(
  ('sizes', 'options'),
  [
    ((2, 2, 2), {'padding': 'zero', 'remat': 'block', **UNEVEN}),
    ((1, 1, 8), UNEVEN),
    ((2, 2, 2), {'shift_ratio': 0.0}),
    ((2, 2, 2), {'pool': 'neck', 'neck_width': 6, 'neck_depth': 1}),
  ],
  ids=str,
)
def test_gradients_are_those_of_the_plain_model(sizes, options):
  check_gradients(sizes, **options)


FAULTS = {
  'the first channels rectified on every device': (
    'activate',
    lambda self, spec, u: layers.activate(u, spec.activation, spec.beta),
  ),
  'R y of a device alone': ('sum', lambda self, x: x),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_gradient_check_rejects(name, monkeypatch):
  method, fault = FAULTS[name]
  monkeypatch.setattr(blocks.Layout, method, fault)
  with pytest.raises(AssertionError):
    check_gradients((2, 2, 2), shift_ratio=3 / 16)


@pytest.mark.parametrize('remat', models.lipnext.REMAT_POLICIES)
def test_no_gathered_matrix_is_kept_for_the_backward_pass(remat):
  model = models.LipNeXt(
    3, 2, WIDTH, 4, remat=remat, devices=layout_of(1, 8, 1)
  )
  plain = model.clone(devices=ONE_DEVICE)
  images = jnp.zeros((8, 8, 8, 1))
  variables = jax.eval_shape(plain.init, jax.random.key(0), images)
  grad = jax.grad(lambda v: model.apply(v, images).sum())
  jaxpr = jax.make_jaxpr(grad)(variables)
  # R and M in forward, and again in backward.
  assert str(jaxpr).count('= all_gather[') == 4


@pytest.mark.parametrize('axis', [0, 1])
def test_gathered_parts_have_their_gradients_summed_in_their_own_dtype(axis):
  """Eight devices, 1 + 2⁻¹⁰ each: bfloat16 would lose the 2⁻¹⁰."""
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), AUTO[:2])
  spec = PartitionSpec(*[None] * axis, 'fsdp')

  def gradient(gather):
    def loss(w):
      return jnp.sum(gather(w)) * (1 + 2.0**-10)

    return jax.shard_map(
      jax.grad(loss), mesh=mesh, in_specs=spec, out_specs=spec
    )(jnp.ones((8, 8)))

  def narrow(w):
    w = jax.lax.pcast(w.astype(jnp.bfloat16), ('data',), to='varying')
    return jax.lax.all_gather(w, 'fsdp', axis=axis, tiled=True)

  wide = functools.partial(blocks.gather, jnp.bfloat16, ('data',), 'fsdp', axis)
  np.testing.assert_array_equal(gradient(wide), 8 * (1 + 2.0**-10))
  assert np.all(gradient(narrow) != 8 * (1 + 2.0**-10))


def test_channels_that_are_paired_cannot_be_split():
  model = models.LipNeXt(
    3, 2, WIDTH, 4, activation='minmax', devices=layout_of(1, 1, 8)
  )
  images = jnp.zeros((8, 8, 8, 1))
  with pytest.raises(ValueError, match="'minmax' cannot be split"):
    jax.eval_shape(model.init, jax.random.key(0), images)
