import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax.models import interface
from lipnext_jax.runtime import diagnosis

HUGE = 3e38  # Twice this is above float32.


@functools.cache
def make(remat='products'):
  model = models.LipNeXt(
    num_classes=3, depth=3, width=16, patch_size=2, remat=remat
  )
  images = jnp.full((2, 8, 8, 1), 0.3)
  return model, images, model.init(jax.random.key(0), images)['params']


def changed(params, module, leaf, fn):
  return params | {module: params[module] | {leaf: fn(params[module][leaf])}}


def find(params, images, loss_fn=losses.emma_loss, model=None):
  args = params, images, jnp.arange(2), jnp.float32(0.1)
  return diagnosis.find_not_finite(model or make()[0], loss_fn, *args)


def test_images_come_first_then_parameters_and_last_loss_and_gradient():
  _, images, params = make()
  assert find(params, images) is None
  assert find(params, images, lambda *a: jnp.float32(jnp.nan)) == 'loss'
  # The derivative of √ at 0 is infinite.
  found = find(params, images, lambda f, *_: jnp.sum(jnp.sqrt(0 * f)))
  assert found.startswith('gradient of head/')
  broken = changed(params, 'blocks', 'M', lambda m: m.at[2, 0, 1].set(jnp.inf))
  assert find(broken, images) == 'parameter blocks/M, layer 2'
  assert find(broken, images.at[1, 2, 3, 0].set(jnp.nan)) == 'images'


@pytest.mark.parametrize(
  ('layer', 'remat'), list(enumerate(models.lipnext.REMAT_POLICIES))
)
def test_between_them_comes_the_layer_that_overflows(layer, remat):
  """A finite bias is so large that the next layer overflows."""
  model, images, params = make(remat)
  # R sums 16 entries of the shared p, each entry of R of order 1/4.
  broken = changed(params, 'blocks', 'pos', lambda p: p.at[layer].set(HUGE))
  found = find(broken, images, model=model)
  assert found == f'activations of blocks, layer {layer}'


class Plain(nn.Module):
  """A model without a scan, with a layer whose gradient is not finite."""

  @nn.compact
  def __call__(self, images):
    x = nn.Dense(4, name='first')(images.reshape(len(images), -1))
    x = nn.Dense(4, name='second', kernel_init=nn.initializers.zeros)(x)
    # |x|^½ has no derivative at 0, where all of x lies.
    return interface.NormalizedHead(3, name='head')(jnp.sqrt(jnp.abs(x)))


def test_other_models_need_nothing_for_it():
  model, images = Plain(), jnp.ones((2, 2, 2, 1))
  params = model.init(jax.random.key(0), images)['params']
  assert find(params, images, model=model) == 'gradient of second/bias'
  broken = changed(params, 'first', 'bias', lambda b: b + HUGE)
  broken = changed(broken, 'first', 'kernel', lambda k: 0 * k + HUGE)
  assert find(broken, images, model=model) == 'activations of first'
