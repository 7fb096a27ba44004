"""Tests that crafted constants get no radius from fast certificates."""

import jax
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.certify import bound
from lipnext_jax.certify import fast
from lipnext_jax.certify import rigorous
from lipnext_jax.certify import rounding
from tests import networks

pytestmark = pytest.mark.usefixtures('optimized')

MODEL = models.LipNeXt(
  num_classes=4, depth=2, width=16, patch_size=4, m_init='haar'
)
IMAGES = np.random.default_rng(0).random((32, 8, 8, 1)).astype(np.float32)
START = jax.jit(MODEL.init)(jax.random.key(0), IMAGES)['params']
PROGRAM = jax.jit(fast.rival_radii, static_argnums=0)
APPLY = jax.jit(MODEL.explicit().apply)


def make(stem=0.0, head=0.0, pos=0.0):
  """Returns weights with constants that one layer adds and the next removes."""
  params = jax.tree.map(np.array, START)
  params['stem']['bias'] += np.float32(stem)
  params['blocks']['pos'][1] += np.float32(pos)
  params['head']['bias'] += np.float32(head)
  # The shift leaves constants alone: a block is M on them.
  for layer, constant in enumerate((stem, pos)):
    undone = np.sum(np.float64(params['blocks']['M'][layer]) * constant, axis=1)
    params['blocks']['bias'][layer] -= np.float32(undone)
  return params


def bare(params, prove=certify.lipschitz_bound):
  """Returns certificates from logits and Λ alone."""
  variables = {'params': params}
  logits, kernel = APPLY(variables, IMAGES), models.head_kernel(variables)
  return certify.certified_radius(logits, kernel, prove(params))


def unchecked_bound(params):
  """Planted: Λ, which does not say how large the constants are."""
  return certify.bound_product(certify.lipschitz_bounds(params))


def count_broken(params, predictions, radii):
  """Counts certificates with another answer well inside the ball."""
  rng, broken = np.random.default_rng(1), np.zeros(len(IMAGES), bool)
  for _ in range(30):
    d = rng.normal(size=IMAGES.shape)
    d /= np.linalg.norm(d, axis=(1, 2), keepdims=True)
    size = 0.9 * np.minimum(radii, 3) * rng.random(len(IMAGES))
    moved = np.float32(IMAGES + size[:, None, None, None] * d)
    found = np.argmax(APPLY({'params': params}, moved), axis=-1)
    broken |= (found != predictions) & (size > 0)
  return int(np.sum(broken))


def test_crafted_constants_certify_nothing_and_honest_ones_all():
  def certify_fast(params):
    constants = fast.prove_constants(params).on_device()
    _, radii = PROGRAM(MODEL.explicit(), params, IMAGES, constants)
    return np.min(radii, axis=-1)

  assert np.all(certify_fast(make()) > 0)
  found = 0
  for case in (
    *({'head': 2.0**k} for k in (20, 22, 24, 26, 30)),
    *({'stem': c} for c in (1e5, 1e6, 2.0**23, 1e8)),
    *({'pos': c} for c in (1e5, 1e6, 1e7)),
    {'stem': 1e6, 'pos': -3e6, 'head': 2.0**20},
  ):
    params = make(**case)
    assert not np.any(certify_fast(params)), case
    found += count_broken(params, *bare(params, unchecked_bound))
    # `certified_radius` sees no weights, so `lipschitz_bound` checks them.
    if set(case) == {'head'}:  # Seen in the logits.
      assert not np.any(bare(params)[1])
    else:
      with pytest.raises(ValueError, match='certify with rigorous_certifier'):
        certify.lipschitz_bound(params)
  assert found > 20  # Of what is refused, some is false.


def test_bare_radii_above_what_is_said_hold_at_the_largest_constants():
  params = make(stem=80.0, pos=40.0)
  total, tokens = bound.sum_constants(params)
  assert 900 < total / tokens**0.5 < bound.LARGEST_CONSTANTS
  with pytest.raises(ValueError, match='can hide changes'):
    certify.lipschitz_bound(make(stem=90.0, pos=45.0))
  predictions, radii = bare(params)
  said = np.where(radii > 0.004 * tokens**0.5, radii, 0)
  assert np.count_nonzero(said) > 16
  assert count_broken(params, predictions, said) == 0


def test_the_floor_is_that_of_the_recursion_and_not_far_above():
  """B bounds the norm after every step, by `rounding`."""
  trees = [make(), make(stem=3.0, pos=0.5), make(head=7.0)]
  trees[0]['blocks']['M'] *= np.float32(1.25)  # Λ is not 1.
  neck = MODEL.clone(pool='neck', neck_width=40, neck_depth=2)  # Wider.
  for params in [*trees, networks.draw(neck, IMAGES.shape[1:])]:
    constants = fast.prove_constants(params)
    norms = np.linalg.norm(np.float64(IMAGES - 0.5), axis=(1, 2))[:, 0]
    reach = rounding.propagate(rigorous.prove(params).steps, norms).norm
    largest = np.max(np.abs(params['head']['bias']))
    bound = constants.lipschitz * norms + constants.offset
    assert np.all(bound >= (reach + largest) * (1 - 1e-9))
    assert np.all(bound <= (reach + largest) * (1 + 1e-4))
    floor = np.asarray(fast.margin_floor(IMAGES, constants))
    np.testing.assert_allclose(floor, 64 * 2.0**-24 * bound, rtol=1e-6)


def test_constants_are_amplified_by_what_stretches_and_by_no_less():
  """The model has convolutions of factors 3 and 1/2, and four tokens."""
  kernels = np.array([3, 0.5]).reshape(2, 1, 1, 1, 1)
  params = {
    'stem': {'pos': np.full((2, 2, 1), 0.5), 'bias': np.array([2.0])},
    'blocks': {'conv_zero': kernels, 'bias': np.array([[1.0], [-4.0]])},
    'neck': {'Q': np.eye(4), 'bias': np.ones(4)},
    'head': {'kernel': np.eye(2, 4), 'bias': np.array([-7.0, 0])},
  }
  found = fast.prove_constants(params)
  total = 0.5 * 2 + 2 * (2 + 1 + 4) + 2  # Four tokens, one in the neck.
  assert found.offset == pytest.approx(3 * total + 7, rel=1e-3)
  assert found.lipschitz == pytest.approx(1.5, rel=1e-3)
  assert fast.prove_constants({'params': params}) == found
  more = fast.prove_constants(params | {'bias': np.array([5.0])})
  assert more.offset == pytest.approx(found.offset + 3 * 2 * 5, rel=1e-3)


def test_features_that_vanish_on_the_way_certify_nothing(monkeypatch):
  """Convolutions scale down by 2¹²⁴, where float32 ends, and up again."""
  model = models.LiResNet(
    2, depth=3, width=2, patch_size=1, dense_depth=0, dense_width=2,
    padding='circular', kernel_size=1, activation='beta_abs', beta=0.0,
  )  # fmt: skip
  # Exact logits: x − 1/2 and 1/8. Computed ones: 0 and 1/8 for the second x.
  images = np.float32([0.750025, 0.749975]).reshape(2, 1, 1, 1)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  shapes = jax.eval_shape(model.explicit_params, variables['params'])
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  params['stem']['conv_circular'][0, 0, 0, 0] = 2.0**-62
  for layer, scale in enumerate((2.0**-62, 2.0**62, 2.0**62)):
    params['blocks']['conv_circular'][layer, 0, 0] = scale * np.eye(2)
  params['neck']['Q'][:], params['head']['kernel'][:] = np.eye(2), np.eye(2)
  params['head']['bias'][1] = 1 / 8
  _, radii = fast.fast_certifier(model, params)(images)
  assert not np.any(np.min(radii, axis=-1))
  monkeypatch.setattr(fast, '_UNDERFLOW', 0.0)
  predictions, radii = fast.fast_certifier(model, params)(images)
  assert predictions.tolist() == [0, 1]  # Within 5e-5 of each other, and yet:
  assert np.min(radii) > 0.05


@pytest.mark.parametrize('scale', [0.0, 1e-25, 1e20, np.nan])
def test_rows_that_float32_cannot_normalise_are_refused(scale):
  params = make()
  params['head']['kernel'][1] *= np.float32(scale)
  with pytest.raises(ValueError, match='head/kernel has a norm'):
    fast.prove_constants(params)


def test_float32_above_is_above():
  for value in (1.0, 1 + 1e-12, 1 + 6e-6, 1.5, np.pi):
    above = certify.float32_above(value)
    assert above.dtype == np.float32
    assert value < float(above) < value * (1 + 3e-7)
