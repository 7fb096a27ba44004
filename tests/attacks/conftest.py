"""Models whose certificates are tight."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.attacks import target as target_lib


@pytest.fixture(scope='session')
def isometry():
  """Returns a LipNeXt that is an isometry plus a constant near its images.

  One token of 16 pixels in 16 channels; a bias of 3 keeps every feature
  positive for all x with ‖x − 1/2‖ < 3, so that neither β-Abs nor the pooling
  bends anything. Logits are W Q (x − 1/2), and the nearest point with another
  answer lies at exactly min_j margin_j / ‖w_i − w_j‖.
  """
  rng = np.random.default_rng(0)
  model = models.LipNeXt(num_classes=3, depth=1, width=16, patch_size=4)
  images = rng.random((16, 4, 4, 1), np.float32)
  q, r = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
  kernel = rng.normal(size=(3, 16))
  kernel /= np.linalg.norm(kernel, axis=-1, keepdims=True)
  params = {
    'stem': {'Q': q, 'bias': np.full(16, 3.0)},
    'blocks': {
      'R': r[None, :8],
      'M': np.eye(16)[None],
      'bias': np.zeros([1, 16]),
      'pos': np.zeros([1, 1, 1, 1]),
    },
    'head': {'kernel': kernel, 'bias': -3 * np.sum(kernel, axis=-1)},
  }
  params = jax.tree.map(np.float32, params)
  return types.SimpleNamespace(model=model, params=params, images=images)


@pytest.fixture(scope='session')
def make_target(isometry):
  """Returns a function (parameters, kind) → certificates of `isometry`."""

  def make(params=isometry.params, kind='rigorous', **options):
    model, images = isometry.model, isometry.images
    return target_lib.certified_target(kind, model, params, images, **options)

  return make


@pytest.fixture(scope='session')
def exact_target(make_target):
  """Returns the rigorous certificates of `isometry`."""
  return make_target()


@pytest.fixture(scope='session')
def assume():
  """Returns a function: target → it with a given Λ, and nothing subtracted."""

  def assume(target, lipschitz=1.0):
    with target.arithmetic():
      logits = jnp.asarray(target.logits(target.images))
      kernel = models.head_kernel({'params': target.params})
      predictions, radii = certify.certified_radius(logits, kernel, lipschitz)
    return target._replace(
      predictions=np.asarray(predictions),
      radii=np.float64(radii),
      closed=False,
    )

  return assume


def linear_logits(params, images):
  """Returns the pixels times a matrix: margins can be designed."""
  flat = images.reshape(len(images), -1)
  weights = params['weights'].astype(flat.dtype)
  return flat @ weights + jnp.expand_dims(params['bias'], 0).astype(flat.dtype)


@pytest.fixture(scope='session')
def make_linear():
  """Returns a function (weights [d, k], bias, images, radii) → target."""

  def make(weights, bias, images, radii, *, closed=True):
    target = target_lib.Target(
      apply=linear_logits,
      params={'weights': np.asarray(weights), 'bias': np.asarray(bias)},
      images=images,
      predictions=np.zeros(len(images), np.int32),
      radii=np.asarray(radii, np.float64),
      lipschitz=1.0,
      closed=closed,
    )
    return target._replace(predictions=target.answers(images).astype(np.int32))

  return make
