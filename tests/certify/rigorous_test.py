"""Tests that rigorous certificates hold in float64 and are not too small.

The oracle is the same network written out again in NumPy: in 80-bit floats
(u = 2⁻⁶⁴), beside which float64's own rounding (2⁻⁵³) is plain to see, and for
one token in rational numbers.
"""

from fractions import Fraction
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import models
from lipnext_jax.certify import norms as norms_lib
from lipnext_jax.certify import rigorous
from lipnext_jax.certify import rounding
from tests import networks

pytestmark = pytest.mark.usefixtures('optimized')

WIDE = np.longdouble
needs_wide = pytest.mark.skipif(
  np.finfo(WIDE).eps > 2.0**-60,
  reason='this platform has no 80-bit floats to compare float64 with',
)


def make(*, scale=1.0, width=16, depth=2, patch_size=4, channels=1, **options):
  model = models.LipNeXt(4, depth, width, patch_size, **options)
  images = np.random.default_rng(0).random((5, 8, 8, channels))
  return model, networks.draw(model, images.shape[1:], scale=scale), images


def certify_logits(logits, norm, proof):
  return rigorous.radii_from_logits(np.array([logits]), np.array([norm]), proof)


def unit_rows(kernel):
  return kernel / np.sqrt(np.sum(kernel**2, axis=1, keepdims=True))


@np.vectorize(otypes=[object])
def rational(value):
  return Fraction(float(value))


@np.vectorize(otypes=[object])
def rational_root(square):
  root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
  assert root**2 == square
  return root


def exact_logits(model, params, images, number=WIDE, root=np.sqrt):
  """Returns the logits in another arithmetic, from einsum, roll and abs."""
  p = jax.tree.map(number, params)
  x = number(images) - number(0.5)
  b, side, k = len(x), x.shape[1], model.patch_size
  grid = side // k
  x = x.reshape(b, grid, k, grid, k, -1).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(b, grid, grid, -1)
  q = p['stem']['Q'][: model.width, : x.shape[-1]]

  def activate(x):
    cut = int(model.beta * x.shape[-1])
    return np.concatenate([np.abs(x[..., :cut]), x[..., cut:]], axis=-1)

  x = activate(np.einsum('bhwc,dc->bhwd', x, q) + p['stem']['bias'])
  moved = int(model.shift_ratio * model.width)
  for layer in range(model.depth):
    r, m = p['blocks']['R'][layer], p['blocks']['M'][layer]
    y = x + p['blocks']['pos'][layer][None]
    x = np.einsum('bhwc,dc->bhwd', y, r)
    shifted = [
      np.roll(x[..., group * moved : (group + 1) * moved], step, axis=axis)
      for group, (axis, step) in enumerate([(1, -1), (1, 1), (2, -1), (2, 1)])
    ]
    x = y + np.einsum('bhwc,cd->bhwd', np.concatenate(shifted, -1) - x, r)
    x = np.einsum('bhwc,dc->bhwd', x, m) + p['blocks']['bias'][layer]
    x = activate(x)
  if model.pool == 'l2':
    z = root(np.sum(x * x, axis=(1, 2)))
  else:
    dense = zip(p['dense']['Q'], p['dense']['bias'], strict=True)
    z = x.reshape(b, -1)
    for q, bias in [(p['neck']['Q'], p['neck']['bias']), *dense]:
      z = activate(np.einsum('bn,dn->bd', z, q) + bias)
  kernel, bias = p['head']['kernel'], p['head']['bias']
  lengths = root(np.sum(kernel * kernel, axis=1))
  return np.einsum('bc,kc->bk', z, kernel / lengths[:, None]) + bias


def float64_pass(model, params, images):
  """Returns the logits, and the bounds on the norms of the images."""
  with jax.enable_x64(True):
    wide = rigorous.float64_params(params)
    return tuple(map(np.asarray, rigorous._forward(model, wide, images)))


def gaps(logits, exact, predictions):
  """Returns |errors| [b, k] of f_i − f_j for the predictions i."""
  errors = logits - exact
  own = np.take_along_axis(errors, predictions[:, None], axis=-1)
  return np.abs(own - errors)


@needs_wide
@pytest.mark.parametrize(
  'options',
  [
    {'scale': 1e4},
    {'patch_size': 8, 'width': 8, 'depth': 3},
    {'pool': 'neck', 'neck_width': 12, 'neck_depth': 2},
  ],
)
def test_float64_logits_err_by_less_than_reported(options):
  model, params, images = make(**options)
  logits, norms = float64_pass(model, params, images)
  exact = exact_logits(model, params, images)
  found = certify.rigorous_radius(model, params, images)
  actual = np.max(gaps(logits, exact, found.predictions), axis=-1)
  assert np.all(actual <= found.logit_errors)
  assert np.all(actual > 0)  # The oracle sees float64 round.
  assert np.all(found.logit_errors < 1e5 * np.max(actual))  # Not vacuous.
  # Planted: a pass in float32.
  narrow = model.clone(precision='highest').apply(
    {'params': params}, np.float32(images)
  )
  gap = np.abs(np.asarray(narrow) - exact)
  assert np.max(gap) > np.max(found.logit_errors)
  # The norm of each image is rounded up.
  exact = np.sqrt(np.sum((WIDE(images) - 0.5) ** 2, axis=(1, 2, 3)))
  assert np.all((norms >= exact) & (norms <= exact * (1 + 1e-12)))


@pytest.mark.parametrize(
  'options',
  [
    {'padding': 'zero', 'shift_ratio': 1 / 4},
    {'beta': 0.0},
    {'pool': 'neck', 'neck_width': 24, 'neck_depth': 2},
    {'width': 8, 'channels': 3},  # The stem cuts: 48 values to 8 channels.
  ],
)
def test_a_float32_pass_errs_by_less_than_the_chain_says(options):
  """Float64 is the exact arithmetic here: 29 bits apart."""
  model, params, images = make(**{'width': 24, 'depth': 3} | options)
  model, images = model.clone(precision='highest'), np.float32(images)
  exact, of_images = float64_pass(model, params, images)
  winner = np.argmax(exact, axis=-1)
  steps = rigorous.prove(params).steps
  assert isinstance(steps[-1], rounding.Pool) == (model.pool == 'l2')
  first, bias = steps[1:3]  # Sums may start from the bias.
  assert first.length == bias.terms == params['stem']['Q'].shape[-1] + 1
  reach = rounding.propagate(steps, of_images, norms_lib.FLOAT32)
  head = rigorous.read_head(params, norms_lib.FLOAT32)
  bound = rigorous.pair_errors(reach, head, winner, norms_lib.FLOAT32)

  def found(model, params=params):
    return np.float64(jax.jit(model.apply)({'params': params}, images))

  ratio = np.max(gaps(found(model), exact, winner) / bound)
  # Not vacuous: γ_n‖W‖_F exceeds u, what random signs give, n^{3/2} = 118-fold,
  # and one pair of logits sees 1/√n of the error of all features.
  assert 5e-5 < ratio <= 1
  # Planted: a pass in bfloat16, 2¹⁶ times coarser.
  coarse = found(model.clone(dtype=jnp.bfloat16))
  assert np.any(gaps(coarse, exact, winner) > bound)

  # A head of unit rows and no bias returns the features.
  width = params['head']['kernel'].shape[1]
  head = {'kernel': jnp.eye(width), 'bias': jnp.zeros(width)}
  features = found(model.clone(num_classes=width), params | {'head': head})
  sizes = np.linalg.norm(features, axis=-1)
  assert np.all(sizes <= reach.norm)
  without = [s for s in steps if not isinstance(s, rounding.AddConstant)]
  assert np.any(sizes > rounding.propagate(without, of_images).norm)


def test_the_answer_holds_up_to_the_radius_and_no_further():
  """Attacks along the directions in which f_i − f_j falls fastest.

  The network is an isometry of its 64 pixels: one token, β = 0, and biases that
  keep all features far above zero, so that pooling is the identity. The
  certificate is tight.
  """
  model, params, images = make(width=64, patch_size=8, beta=0.0, scale=0.0)
  params['blocks']['bias'][:] = 100.0
  params['blocks']['M'][:] = np.eye(64)
  found = certify.rigorous_radius(model, params, images)
  assert np.all(found.radii > 0)
  rows = unit_rows(np.float64(params['head']['kernel']))
  q = np.float64(params['stem']['Q'])
  for image, prediction, radius in zip(
    images, found.predictions, found.radii, strict=True
  ):
    falls = np.delete(rows - rows[prediction], prediction, axis=0) @ q
    falls = unit_rows(falls).reshape(-1, *image.shape)
    inside, beyond = (
      float64_pass(model, params, image + r * falls)[0].argmax(-1)
      for r in (radius * (1 - 1e-12), radius * (1 + 1e-5))
    )
    assert np.all(inside == prediction)
    assert np.any(beyond != prediction)  # Λ − 1 is some 1e-6 here.


def test_ties_nan_infinity_and_overflow_certify_nothing():
  model, params, images = make()
  proof, certain = rigorous.prove(params), [9.0, 1, 0, 0]
  assert certify_logits(certain, 1.0, proof).radii[0] > 1
  for logits, norm in (
    *(([top, 1, 0, 0], 1.0) for top in (1.0, np.nan, np.inf)),
    *((certain, norm) for norm in (np.inf, np.nan, 1e200)),
    # Margins beyond any rounding, but squares of such features overflow.
    ([1e150, 1, 0, 0], 1.0),
  ):
    assert certify_logits(logits, norm, proof).radii.tolist() == [0.0]
  images = np.full_like(images, np.nan)
  assert not certify.rigorous_radius(model, params, images).radii.any()


def errors_in(ball, proof):
  """Returns E_j [balls, k] of the predicted class 0 on balls."""
  reach = rounding.propagate(proof.steps, ball)
  return rigorous.pair_errors(reach, proof.head, np.zeros(len(ball), int))


@pytest.mark.parametrize(
  ('logits', 'norm', 'scale', 'fault'),
  [
    # One rival is close: its small ball is not the one of the others.
    # Planted: E of the nearest rival's ball for all rivals.
    ([1e6, 1e6 - 1e-3, 1.0, -1e6], 1.0, 1.0, lambda found, _: found),
    # Planted: E at the image, not in the ball.
    ([1e3, 0.0, 0.0, 0.0], 1e-3, 0.0, lambda _, centre: centre),
  ],
)
def test_each_rival_pays_for_the_rounding_in_its_own_ball(
  logits, norm, scale, fault
):
  proof = rigorous.prove(make(scale=scale)[1])
  found = certify_logits(logits, norm, proof)
  slopes = found.lipschitz * proof.head.distances[0, 1:]
  margins = logits[0] - np.array(logits[1:])

  def claims_too_much(radii):
    rounded = errors_in(norm + radii, proof)[range(3), range(1, 4)]
    return np.any(radii > (margins - 2 * rounded) / slopes)

  assert np.all(found.rival_radii[0, 1:] > 0)
  assert not claims_too_much(found.rival_radii[0, 1:])
  centre = errors_in(np.array([norm]), proof)[0, 1:]
  subtracted = fault(found.logit_errors, centre)
  assert claims_too_much((margins - 2 * subtracted) / slopes)
  if norm == 1:  # Far rivals keep their own radii.
    assert found.rival_radii[0, 2] > 1e5 * found.rival_radii[0, 1]


def test_the_error_is_subtracted_twice():
  """Both the image and the other point err; margins are a few E."""
  proof = rigorous.prove(make()[1])
  norm = 1e9  # No radius here enlarges the ball.
  error = errors_in(np.array([norm]), proof)[0, 1]
  for leads_by in (1.5, 1.99, 2.01, 3.0, 100.0):
    found = certify_logits([leads_by * error, 0.0, -1.0, -1.0], norm, proof)
    left = (leads_by - 2) * error
    slope = found.lipschitz * proof.head.distances[0, 1]
    assert found.radii[0] == pytest.approx(max(left, 0) / slope, rel=1e-6)


def test_features_that_err_towards_a_rival_are_covered():
  """An error e of the features along w_i − w_j moves the margin by d·e."""
  _, params, _ = make()
  reach = rounding.Reach(np.ones(1), np.array([0.5]))
  head = rigorous.read_head(params)
  found = rigorous.pair_errors(reach, head, np.array([0]))[0]
  rows = unit_rows(np.float64(params['head']['kernel']))
  moved = 0.5 * np.linalg.norm(rows[0] - rows[1:], axis=-1)
  assert np.all((moved <= found[1:]) & (found[1:] < moved * (1 + 1e-9)))


def head_error(kernel, bias, z):
  """Returns the error of f_0 − f_1 in float32, from exact features; a bound."""
  kernel, bias, z = map(np.float32, (kernel, bias, z))
  lengths = np.sqrt(np.add.accumulate(kernel**2, axis=1)[:, -1:])
  logits = np.add.accumulate(kernel / lengths * z, axis=1)[:, -1] + bias
  exact = unit_rows(np.float64(kernel)) @ z + bias
  params = {'head': {'kernel': kernel, 'bias': bias}}
  head = rigorous.read_head(params, norms_lib.FLOAT32)
  reach = rounding.Reach(np.array([np.linalg.norm(z)]), np.zeros(1))
  bound = rigorous.pair_errors(reach, head, np.array([0]), norms_lib.FLOAT32)
  return abs(np.diff(logits - exact).item()), bound[0, 1]


def test_the_head_rounds_its_sums_and_its_bias():
  c, unit = 1024, norms_lib.FLOAT32.unit
  kernel = np.ones((2, c)) * [[1.0], [-1.0]]
  # Beside the first product, all others are half a unit: lost, in both rows.
  error, bound = head_error(kernel, np.zeros(2), [1.0] + [unit] * (c - 1))
  assert 20 * unit < error <= bound  # Many units, not a few.
  # The logits 1/3 are rounded to the bias' last digit, of one row only.
  z = [32 / 3] + [0] * (c - 1)
  error, bound = head_error(kernel, [0.0, -(2.0**22)], z)
  assert 0.05 < error <= bound


def test_a_rival_with_the_same_row_leaves_the_other_radii_alone():
  """The ball of that rival is vast; the radius is the nearest rival's."""
  _, params, _ = make()
  params['head']['kernel'][1] = params['head']['kernel'][0]
  proof = rigorous.prove(params)
  found = certify_logits([9.0, 1, 0, 0], 1.0, proof)
  assert found.rival_radii[0, 1] >= found.radii[0]
  slope = found.lipschitz * np.max(proof.head.distances[0, 2:])
  assert found.radii[0] == pytest.approx(9 / slope, rel=1e-9)


@needs_wide
def test_row_distances_are_upper_bounds_and_tight():
  kernel = np.float32(np.random.default_rng(0).normal(size=(6, 40)))
  kernel[1] = kernel[0]  # Identical rows: distance zero.
  kernel[2] = -kernel[0]  # Opposite rows: distance two.
  head = rigorous.read_head({'head': {'kernel': kernel, 'bias': np.zeros(6)}})
  rows = unit_rows(WIDE(kernel))
  exact = np.sqrt(np.sum((rows[:, None] - rows[None]) ** 2, axis=-1))
  assert np.all(head.distances >= exact)
  assert np.all(head.distances <= exact + 1e-13)
  assert head.distances[0, 2] == pytest.approx(2, abs=1e-12)


def test_weights_and_devices_that_bound_nothing_are_refused():
  for bad in (0.0, np.nan, 1e-200):
    kernel = np.array([[1.0] * 4, [bad] * 4])
    with pytest.raises(ValueError, match='head/kernel'):
      rigorous.read_head({'head': {'kernel': kernel, 'bias': np.zeros(2)}})
  params = make()[1]
  params['blocks']['bias'][:] = np.nan
  with pytest.raises(ValueError, match='blocks/bias is not finite'):
    rigorous.prove(params)
  rigorous.require(ONE_TOKEN, 'gpu')
  with pytest.raises(errors.ConfigError, match=r'tpu.*choose fast'):
    rigorous.require(ONE_TOKEN, 'tpu')


ONE_TOKEN = models.LipNeXt(3, depth=8, width=4, patch_size=2, shift_ratio=1 / 4)
# Rows whose norms are rational, 5 and 13: the exact logits are.
KERNEL = np.float32([[3, 4, 0, 0], [0, 5, 12, 0], [-4, 0, 3, 0]])


def rational_logits(params, images):
  return exact_logits(ONE_TOKEN, params, images, rational, rational_root)


def hostile_network(seed):
  """Returns weights with large constants and margins down to 1e-16."""
  rng = np.random.default_rng(seed)
  image = np.full((2, 2, 1), 0.5) if seed % 2 else rng.random((2, 2, 1))
  params = networks.draw(ONE_TOKEN, (2, 2, 1), seed)

  def fill(path, leaf):
    size = 10.0 ** rng.uniform(-20, 14)
    if path[-1].key in ('bias', 'pos'):
      return np.float32(size * rng.normal(size=leaf.shape))
    return np.asarray(leaf) * np.float32(10 ** rng.choice([0.0] * 8 + [-3, 3]))

  params = jax.tree_util.tree_map_with_path(fill, params)
  params['head'] = {'kernel': KERNEL, 'bias': np.zeros(3)}
  (logits,) = rational_logits(params, image[None])
  largest = max(map(abs, logits))
  share = Fraction(10.0 ** -rng.choice([1, 8, 14, 15.5, 16]))
  # Two classes lead the third, by a share of the largest logit from each other.
  wanted = np.array([largest * share, 0, -largest])
  params['head']['bias'] = (wanted - logits).astype(np.float64)
  return params, image[None]


def count_broken(certifier, cases):
  """Counts certificates, and those with an exact counterexample."""
  certified = broken = 0
  for seed, (params, images) in enumerate(cases):
    p, radius = certifier(params, images)
    certified += radius > 0
    directions = np.random.default_rng(seed).normal(size=(4, *images[0].shape))
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    moved = images + 0.999 * min(radius, 1e18) * directions
    logits = rational_logits(params, np.concatenate([images, moved]))
    broken += radius > 0 and np.any(logits[:, p] < np.max(logits, axis=-1))
  return certified, broken


def ours(params, images):
  found = certify.rigorous_radius(ONE_TOKEN, params, images)
  return found.predictions[0], found.radii[0]


def without_error(params, images):
  """Planted: radii that ignore float64's rounding."""
  logits, _ = float64_pass(ONE_TOKEN, params, images)
  head, _, lipschitz = rigorous.prove(params)
  p = np.argmax(logits[0])
  margins = np.delete((logits[0, p] - logits[0]) / head.distances[p], p)
  return p, np.min(margins) / lipschitz


def test_no_hostile_network_breaks_a_rigorous_certificate():
  cases = [hostile_network(seed) for seed in range(60)]
  certified, broken = count_broken(ours, cases)
  assert certified > 15
  assert broken == 0
  assert count_broken(without_error, cases)[1] > 0


def half_image(scale):
  """At x = 1/2, E has its constant part alone, which is not scaled.

  Eight blocks add a quarter of a unit of the bias each, which float64 loses;
  the head adds a whole one to the other class.
  """
  params = networks.draw(ONE_TOKEN, (2, 2, 1), scale=0.0)
  params['stem']['Q'] = np.eye(4, dtype=np.float32)
  params['blocks']['M'][:] = np.eye(4)
  params['stem']['bias'][:2] = scale
  params['blocks']['bias'][:, 0] = 0.99 * scale * 2.0**-54
  rows = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])
  params['head'] = {'kernel': rows, 'bias': np.array([0, scale * 2.0**-52, 0])}
  return params, np.full((1, 2, 2, 1), 0.5)


def test_the_constant_part_of_the_error_does_not_shrink_with_the_ball():
  cases = [half_image(2.0**-k) for k in (56, 60, 64, 70)]
  assert count_broken(ours, cases)[1] == 0
  # They are traps: float64 answers the other class at x itself.
  assert count_broken(without_error, cases)[1] == 4
