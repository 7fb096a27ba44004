"""Tests certified radii: a float64 oracle, attacks in closed form.

For f(x) = W x + b (backbone: the identity, Λ = 1) the certificate is exact:
the nearest point that ties i with j lies at (f_i − f_j)/‖w_i − w_j‖ along
w_j − w_i. So the ball must hold against every attack, and end right there.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import certify
from lipnext_jax import models


def unit(w):
  return w / np.sqrt(np.sum(w**2, axis=-1, keepdims=True))


def brute_force(logits, rows, lipschitz=1.0):
  """Returns (prediction, radius) of one example, by loops in float64."""
  p = max(range(len(logits)), key=lambda j: logits[j])
  radius = math.inf
  for j in range(len(logits)):
    margin = float(logits[p] - logits[j])
    distance = math.sqrt(sum(float(d) ** 2 for d in rows[p] - rows[j]))
    if j != p and margin == 0:
      radius = 0.0
    elif distance:  # Else: a constant margin; j can never win.
      radius = min(radius, margin / (lipschitz * distance))
  return p, radius


RADIUS = jax.jit(certify.certified_radius)


def certify64(logits, rows, lipschitz=1.0):
  with jax.enable_x64(True):
    return tuple(map(np.asarray, RADIUS(logits, rows, lipschitz)))


@pytest.mark.parametrize('k', [2, 3, 10])
def test_matches_brute_force(k):
  rng = np.random.default_rng(k)
  logits = rng.normal(size=(40, k))
  logits[1, :2] = logits[1].max() + 1  # A tie at the top.
  logits[2] = 0  # All tied.
  rows = unit(rng.normal(size=(k, 4)))
  if k > 2:  # A rival with the same row never wins, but for a tie.
    rows[1] = rows[0]

  # Subtraction, 4-term norm and division round by about 20 eps at most.
  for certify_fn, dtype, rtol in (
    (certify64, np.float64, 1e-13),
    (RADIUS, np.float32, 2e-6),
  ):
    f, w = logits.astype(dtype), rows.astype(dtype)
    for lipschitz in (1.0, 1.0001, 7.5):
      found = certify_fn(f, w, lipschitz)
      expected = [brute_force(np.float64(row), w, lipschitz) for row in f]
      predictions, radii = map(np.array, zip(*expected, strict=True))
      np.testing.assert_array_equal(found[0], predictions)
      np.testing.assert_allclose(found[1], radii, rtol=rtol, atol=0)
      assert (found[0].dtype, found[1].dtype) == (np.int32, dtype)
      assert found[1][1] == found[1][2] == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_certified(bad):
  logits = np.array([[5.0, 1.0, 0.0]] * 4)
  logits[[0, 1, 2], [0, 1, 2]] = bad
  for certify_fn in (certify64, RADIUS):
    _, radii = certify_fn(logits, np.eye(3))
    assert (np.asarray(radii) > 0).tolist() == [False, False, False, True]
  for lipschitz in (bad, -1.0, 0.0):  # No bound.
    for kernel in (np.eye(3), np.ones((3, 1))):
      assert not certify64(logits, kernel, lipschitz)[1].any()
  rows = np.array([[1.0, 0.0, 0.0], [bad] * 3, [0.0, 0.0, 1.0]])
  assert not certify64(logits, rows)[1].any()


def float32_radius(logits, kernel, lipschitz=1.0):
  rows = jax.jit(models.head_kernel)({'params': {'head': {'kernel': kernel}}})
  return RADIUS(np.float32([logits]), rows, lipschitz)[1].item()


def check_close_rows(radius_fn):
  """Float32 loses the distance of the rows; the radii are not too large."""
  rng = np.random.default_rng(0)
  cases = [np.array([[1, e, 0], [1, 0, 0]]) for e in (1e-23, 1e-30, 4e-9)]
  for k in np.float32(rng.normal(size=(200, 3))):
    cases.append(np.stack([k, k * np.float32(3)]))
  cases += [np.eye(2, 3) * s for s in (1e20, 1e38, 1e-25)]
  for kernel in map(np.float32, cases):
    rows = unit(np.float64(kernel))
    for margin in (1.0, 1e-24):
      radius = radius_fn([margin, 0], kernel)
      slope = np.linalg.norm(rows[0] - rows[1])
      # Rows that are off by a few units in the last place of float32.
      assert radius * slope <= margin * (1 + 1e-5), 'too large'


def test_rows_that_float32_cannot_tell_apart_give_no_infinite_radius():
  check_close_rows(float32_radius)
  with pytest.raises(AssertionError, match='too large'):
    check_close_rows(lambda f, w: math.inf)
  # Rows that may be the same count as 64u apart.
  _, radii = certify64(np.array([[3.0, 2.0], [2.0, 2.0]]), np.ones((2, 1)))
  np.testing.assert_array_equal(radii, [2.0**47, 0])


def test_what_overflows_or_is_out_of_range_certifies_nothing():
  eye = np.eye(2, dtype=np.float32)
  assert float32_radius([3e38, -3e38], eye) == 0
  assert float32_radius([1e38, 0], eye, np.float32(2.0**-59)) == 0
  for lipschitz in (1e-40, 2.0**-61, 2.0**61, 0.0):
    assert float32_radius([3, 1], eye, np.float32(lipschitz)) == 0
  assert float32_radius([3, 1], eye, np.float32(2.0**-20)) > 1e6


LOGITS, EYE = np.float32([[0, 3, 1], [2, 2, 0], [4, 0, 1]]), jnp.eye(3)


def test_a_floor_below_zero_adds_nothing_to_the_margins():
  below, zero = (certify.certified_radius(LOGITS, EYE, 1.0, f) for f in (-5, 0))
  np.testing.assert_array_equal(below[1], zero[1])


@pytest.mark.parametrize(
  ('args', 'problem'),
  [
    ((LOGITS, EYE[:1]), 'has 1 rows for 3'),
    ((LOGITS[0], EYE), r'give \[b, k\]'),
    ((LOGITS, EYE[None]), r'give \[b, k\]'),
    ((jnp.bfloat16(LOGITS), EYE), 'logits of bfloat16'),
    ((LOGITS, jnp.bfloat16(EYE)), 'head_kernel of bfloat16'),
    ((LOGITS, 0.01 * EYE), 'not unit'),
    ((LOGITS, EYE, np.ones(3)), 'Λ is one number'),
    ((LOGITS, EYE, 1.0, np.ones((3, 1))), 'floor'),
  ],
)
def test_misuse_is_refused(args, problem):
  with pytest.raises(ValueError, match=problem):
    certify.certified_radius(*args)


# f is computed in float64 with values below 100: its rounding, 1e-13 at most,
# is far below the change of margin by 1e-9 of a radius above 1e-3.
STEP = 1e-9


def check_certificate(certify_fn, backbone_norm=1.0, head_scale=1.0):
  """Attacks f(x) = s·W·(‖J‖ x) + b inside the ball, then just outside it.

  `certify_fn(logits, rows)` → radius. s = 1 for a normalised head, ‖J‖ is the
  backbone's constant; the certificate must know both.
  """
  for seed in range(12):
    rng = np.random.default_rng(seed)
    w = unit(rng.normal(size=(5, 3)))
    if seed % 4 == 1:
      w[1::2] = -w[0]  # ‖w_i − w_j‖ = 2 > √2.
    elif seed % 4 == 2:
      w = unit(w[:1] + 0.05 * w)  # ‖w_i − w_j‖ ≪ √2.
    elif seed % 4 == 3:
      w = w[:2]
    b, x = rng.normal(size=len(w)), 3 * rng.normal(size=3)
    slope = head_scale * backbone_norm * w
    p = np.argmax(slope @ x + b)
    radius = certify_fn(slope @ x + b, w)
    assert radius >= 1e-3

    def holds(points, slope=slope, b=b, p=p):
      return np.argmax(points @ slope.T + b, axis=-1) == p

    towards = unit(np.delete(slope - slope[p], p, axis=0))
    directions = np.concatenate([towards, unit(rng.normal(size=(200, 3)))])
    inside = x + radius * (1 - STEP) * directions
    assert np.all(holds(inside)), 'certificate broken'
    outside = x + radius * (1 + STEP) * towards
    assert not np.all(holds(outside)), 'certificate not tight'


def ours(logits, rows, lipschitz=1.0):
  return certify64(logits[None], rows, lipschitz)[1][0]


def test_no_attack_flips_a_linear_model_inside_and_one_does_outside():
  check_certificate(ours)
  check_certificate(functools.partial(ours, lipschitz=1.25), backbone_norm=1.25)


def naive(logits, rows, *, distance=None, spread=1.0, choose=np.min):
  """Planted: another ‖w_i − w_j‖, a rescaled margin, or the farthest rival."""
  p = np.argmax(logits)
  d = np.sqrt(np.sum((rows - rows[p]) ** 2, axis=-1))
  d = np.full_like(d, distance) if distance else d
  margins = spread * (logits[p] - logits)
  return choose(np.delete(margins, p) / np.delete(d, p))


BROKEN, LOOSE = 'certificate broken', 'certificate not tight'
FAULTS = {
  '√2 for ‖w_i − w_j‖': (
    functools.partial(naive, distance=math.sqrt(2)), {}, BROKEN,
  ),
  # ‖w_i − w_j‖ <= 2 always holds: sound, and wasteful.
  '2 for ‖w_i − w_j‖': (functools.partial(naive, distance=2.0), {}, LOOSE),
  'Λ omitted': (ours, {'backbone_norm': 1.001}, BROKEN),
  'head not normalised': (ours, {'head_scale': 1.3}, BROKEN),
  'margin counted twice': (functools.partial(naive, spread=2.0), {}, BROKEN),
  'farthest rival': (functools.partial(naive, choose=np.max), {}, BROKEN),
}  # fmt: skip


@pytest.mark.parametrize('name', FAULTS)
def test_the_attack_rejects(name):
  certify_fn, model, problem = FAULTS[name]
  with pytest.raises(AssertionError, match=problem):
    check_certificate(certify_fn, **model)


def check_accuracy(fn):
  """Counts radii at, below and above each ε."""
  epsilons = [0.0, 36 / 255, 0.25, 1.0]
  radii = np.stack([np.nextafter(epsilons, to) for to in (-9, epsilons, 9)])
  labels = np.arange(radii.size) % 3
  predictions = np.where(np.arange(radii.size) % 5, labels, labels + 1)
  for dtype in (np.float64, np.float32):
    cast = radii.ravel().astype(dtype)
    found = fn(predictions, cast, labels, epsilons)
    assert list(found) == epsilons
    for epsilon in epsilons:
      # Python's floats are exact; NumPy would round ε to float32.
      above = [radius > epsilon for radius in cast.tolist()]
      share = np.mean((predictions == labels) & above)
      assert found[epsilon] == pytest.approx(100 * share), f'{epsilon=}'


def accuracy_at_least(predictions, radii, labels, epsilons):
  correct = predictions == labels
  return {e: 100 * float(np.mean(correct & (radii >= e))) for e in epsilons}


def accuracy_of_the_wrong(predictions, radii, labels, epsilons):
  return {e: 100 * float(np.mean(radii > e)) for e in epsilons}


def test_certified_accuracy_counts_strictly():
  check_accuracy(certify.certified_accuracy)
  for fault in (accuracy_at_least, accuracy_of_the_wrong):
    with pytest.raises(AssertionError, match='epsilon='):
      check_accuracy(fault)


def test_arrays_that_would_be_broadcast_are_refused():
  for i in range(3):
    for shape in ((3, 1), (1,)):
      arrays = [np.arange(3)] * 3
      arrays[i] = np.zeros(shape, int)
      with pytest.raises(ValueError, match=r'give \[n\] each'):
        certify.certified_accuracy(*arrays, [0.1])
