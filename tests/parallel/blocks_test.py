"""The block on a mesh; train_step_test compares runs of 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import models
from lipnext_jax import parallel
from lipnext_jax.models import layers
from lipnext_jax.parallel import blocks
from tests import networks

IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))


def make(sizes, **options):
  """Returns a model on a mesh, and on one device."""
  axes = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
  devices = parallel.model_devices(parallel.make_mesh(axes))
  plain = models.LipNeXt(3, 2, 16, 4, **options)
  return plain.clone(devices=devices), plain


def check_gradients(sizes, **options):
  """Float32 sums of 16 and of 128 terms in another order: about 1e-6."""
  model, plain = make(sizes, **options)
  params = networks.draw(plain, IMAGES.shape[1:], scale=0.1)
  # Not orthogonal: a transposed matrix would be another one.
  rng = np.random.default_rng(3)
  params = jax.tree.map(
    lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), params
  )

  def gradients(model):
    def loss(params):
      return jnp.sum(jnp.sin(model.apply({'params': params}, IMAGES)))

    return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

  for a, b in zip(gradients(plain), gradients(model), strict=True):
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


FAULTS = {  # The first channels rectified on every device; R y of one alone.
  'activate': lambda _, spec, u: layers.activate(u, spec.activation, spec.beta),
  'sum': lambda _, x: x,
}


@pytest.mark.slow
@pytest.mark.parametrize('method', FAULTS)
def test_gradient_check_rejects(method, monkeypatch):
  monkeypatch.setattr(blocks.Layout, method, FAULTS[method])
  with pytest.raises(AssertionError):
    check_gradients((2, 2, 2), shift_ratio=3 / 16)


@pytest.mark.parametrize('remat', models.lipnext.REMAT_POLICIES)
def test_no_gathered_matrix_is_kept_for_the_backward_pass(remat):
  model, plain = make((1, 8, 1), remat=remat)
  variables = jax.eval_shape(plain.init, jax.random.key(0), IMAGES)
  grad = jax.grad(lambda v: model.apply(v, IMAGES).sum())
  jaxpr = jax.make_jaxpr(grad)(variables)
  # R and M in forward, and again in backward.
  assert str(jaxpr).count('= all_gather[') == 4


@pytest.mark.parametrize('axis', [0, 1])
def test_gathered_parts_have_their_gradients_summed_in_their_own_dtype(axis):
  """Eight devices, 1 + 2⁻¹⁰ each: bfloat16 would lose the 2⁻¹⁰."""
  mesh = parallel.make_mesh({'data': 2, 'fsdp': 4})
  spec = jax.sharding.PartitionSpec(*[None] * axis, 'fsdp')

  def gradient(gather):
    grad = jax.grad(lambda w: jnp.sum(gather(w)) * (1 + 2.0**-10))
    spread = jax.shard_map(grad, mesh=mesh, in_specs=spec, out_specs=spec)
    return spread(jnp.ones((8, 8)))

  def narrow(w):
    w = jax.lax.pcast(w.astype(jnp.bfloat16), ('data',), to='varying')
    return jax.lax.all_gather(w, 'fsdp', axis=axis, tiled=True)

  wide = gradient(lambda w: blocks._gather(jnp.bfloat16, axis, w))
  np.testing.assert_array_equal(wide, 8 * (1 + 2.0**-10))
  assert np.all(gradient(narrow) != 8 * (1 + 2.0**-10))
