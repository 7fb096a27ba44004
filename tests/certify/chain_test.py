"""Tests that the chain describes the network: Λ, norms and errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.certify import chain
from lipnext_jax.certify import rigorous
from lipnext_jax.certify import rounding
from tests import networks

pytestmark = pytest.mark.usefixtures('optimized')


@functools.cache
def make(*, width=24, depth=3, channels=1, **options):
  """Returns a network with large constants everywhere, and some images."""
  model = models.LipNeXt(
    num_classes=5,
    depth=depth,
    width=width,
    patch_size=4,
    precision='highest',
    **options,
  )
  rng = np.random.default_rng(0)
  images = rng.random((6, 8, 8, channels)).astype(np.float32)
  return model, networks.draw(model, images.shape[1:]), images


FORWARD = jax.jit(rigorous.forward, static_argnums=0)
CASES = [
  {'padding': 'zero', 'shift_ratio': 1 / 4},
  {'beta': 0.0},
  {'pool': 'neck', 'neck_width': 24, 'neck_depth': 2},
  {'width': 8, 'channels': 3},  # The stem cuts: 48 values to 8 channels.
]


def float32_gap(model, params, images):
  """Returns |errors| of logit differences in float32, and their bounds.

  The exact pass is float64's.
  """
  narrow = np.float64(jax.jit(model.apply)({'params': params}, images))
  with jax.enable_x64(True):
    exact, norms = map(
      np.asarray, FORWARD(model, rigorous.float64_params(params), images)
    )
  winner = np.argmax(exact, axis=-1)
  rows = np.arange(len(images))
  gap = (narrow[rows, winner] - exact[rows, winner])[:, None]
  steps = chain.lipnext_chain(params)
  reach = rounding.propagate(steps, norms, rounding.FLOAT32)
  head = rigorous.read_head(params, rounding.FLOAT32)
  bound = rigorous.pair_errors(reach, head, winner, rounding.FLOAT32)
  return np.abs(gap - (narrow - exact)), bound


@pytest.mark.parametrize('options', CASES)
def test_a_float32_pass_errs_by_less_than_the_chain_says(options):
  model, params, images = make(**options)
  gaps, bound = float32_gap(model, params, images)
  assert np.all(gaps <= bound)
  # Not vacuous: γ_n‖W‖_F exceeds u, what random signs give, n^{3/2} = 118-fold,
  # and one pair of logits sees 1/√n of the error of all features.
  assert np.max(gaps / bound) > 5e-5
  # Planted: a pass in bfloat16, 2¹⁶ times coarser.
  gaps, bound = float32_gap(model.clone(dtype=jnp.bfloat16), params, images)
  assert np.any(gaps > bound)


@pytest.mark.parametrize('options', CASES)
def test_the_bound_on_features_holds_and_needs_the_constants(options):
  model, params, images = make(**options)
  # A head of unit rows and no bias returns the features.
  width = params['head']['kernel'].shape[1]
  head = {'kernel': jnp.eye(width), 'bias': jnp.zeros(width)}
  whole = {'params': {**params, 'head': head}}
  features = jax.jit(model.clone(num_classes=width).apply)(whole, images)
  found = np.linalg.norm(features, axis=-1)
  norms = np.linalg.norm((images - 0.5).reshape(len(images), -1), axis=-1)
  steps = chain.lipnext_chain(params)
  assert np.all(found <= rounding.propagate(steps, norms).norm)
  without = [s for s in steps if not isinstance(s, rounding.AddConstant)]
  assert np.any(found > rounding.propagate(without, norms).norm)


def test_its_constant_is_the_lipschitz_bound():
  _, params, _ = make(depth=1)
  scaled = jax.tree.map(lambda p: 1.001 * p, params)
  for tree in (params, scaled):
    assert rounding.lipschitz(chain.lipnext_chain(tree)) == pytest.approx(
      certify.lipschitz_bound(tree), rel=1e-14
    )
  bad = params['blocks'] | {'bias': jnp.full((1, 24), jnp.nan)}
  with pytest.raises(ValueError, match='blocks/bias'):
    chain.lipnext_chain(params | {'blocks': bad})


def test_the_sum_of_a_product_may_start_from_its_bias():
  model, params, _ = make()
  pairs = [
    (product.length, bias.terms)
    for product, bias in itertools.pairwise(chain.lipnext_chain(params))
    if isinstance(product, rounding.Product)
  ]
  assert pairs == [(model.width + 1,) * 2] * (1 + model.depth)
