"""Targets whose certificates are tight, and linear ones.

`MODEL` with `PARAMS` is an isometry plus a constant near `IMAGES`: one token of
16 pixels in 16 channels; a bias of 3 keeps every feature positive for all x
with ‖x − 1/2‖ < 3, so that neither β-Abs nor the pooling bends anything. Logits
are W Q (x − 1/2), and the nearest point with another answer lies at exactly
min_j margin_j / ‖w_i − w_j‖.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lipnext_jax import attacks
from lipnext_jax import certify
from lipnext_jax import models

FORMATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
MODEL = models.LipNeXt(num_classes=3, depth=1, width=16, patch_size=4)
_rng = np.random.default_rng(0)
IMAGES = _rng.random((16, 4, 4, 1), np.float32)


def _draw():
  q, r = (np.linalg.qr(_rng.normal(size=(16, 16)))[0] for _ in range(2))
  kernel = _rng.normal(size=(3, 16))
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
  return jax.tree.map(np.float32, params)


PARAMS = _draw()


def change(path, fn):
  """Returns `PARAMS` with one leaf replaced, and the constants taken away."""
  params = jax.tree.map(np.copy, PARAMS)
  module, name = path.split('/')
  params[module][name] = np.float32(fn(params[module][name]))
  kernel = params['head']['kernel']
  params['head']['bias'] = -3 * np.sum(kernel, axis=-1)
  return params


def certified(params=PARAMS, kind='rigorous', **options):
  return attacks.certified_target(kind, MODEL, params, IMAGES, **options)


@functools.cache
def exact():
  return certified()


def assume(target, lipschitz=1.0):
  """Returns a target with a given Λ, and nothing subtracted."""
  with target.arithmetic():
    logits = jnp.asarray(target.logits(target.images))
    kernel = models.head_kernel({'params': target.params})
    predictions, radii = certify.certified_radius(logits, kernel, lipschitz)
  return target._replace(
    predictions=np.asarray(predictions), radii=np.float64(radii), closed=False
  )


def _linear_logits(params, images):
  flat = images.reshape(len(images), -1)
  weights = params['weights'].astype(flat.dtype)
  return flat @ weights + jnp.expand_dims(params['bias'], 0).astype(flat.dtype)


def linear(weights, bias, images, radii, *, closed=True):
  """Returns a target with the logits x W + b, for weights W [d, k]."""
  target = attacks.Target(
    apply=_linear_logits,
    params={'weights': np.asarray(weights), 'bias': np.asarray(bias)},
    images=images,
    predictions=np.zeros(len(images), np.int32),
    radii=np.asarray(radii, np.float64),
    lipschitz=1.0,
    closed=closed,
  )
  return target._replace(predictions=target.answers(images).astype(np.int32))
