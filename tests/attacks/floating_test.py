import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import floating
from lipnext_jax.attacks import target as target_lib
from tests.attacks import targets

pytestmark = pytest.mark.usefixtures('optimized')


def rivals_ahead(target):
  """Returns points beyond the nearest edge, along w_j − w_i.

  Pulled back from features to pixels by Qᵀ.
  """
  kernel, p = target.params['head']['kernel'], target.predictions
  kernel = kernel / np.linalg.norm(kernel, axis=-1, keepdims=True)
  logits, rows = target.logits(target.images), np.arange(len(p))
  towards = kernel - kernel[p][:, None]
  gaps = np.linalg.norm(towards, axis=-1)
  gaps[rows, p] = np.nan
  j = np.nanargmin((logits[rows, p][:, None] - logits) / gaps, axis=-1)
  steps = towards[rows, j] @ target.params['stem']['Q']
  return target.images + steps.reshape(target.images.shape)


def count_broken(target, starts, rounds=20):
  ledger = target_lib.Ledger(target)
  points = floating.attack(target, starts, rounds=rounds, candidates=16, seed=0)
  assert exact.is_inside(
    target.images, points, target.radii, closed=target.closed
  ).all()
  ledger.judge('walk', points)
  return int(np.sum(ledger.broken))


@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_at_least_in_place_of_above_is_broken_by_a_tie(dtype):
  """Two logits are equal at the radius, and the other class is first."""
  # All numbers here are exact in every format.
  images = np.array([[0.75, 0.5]]).astype(dtype)
  weights, bias = np.array([[-1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0])
  for closed in (True, False):
    target = targets.linear(
      weights.astype(dtype), bias.astype(dtype), images, [0.25], closed=closed
    )
    assert target.predictions.tolist() == [1]
    assert count_broken(target, np.array([[0.0, 0.5]])) == closed


def test_an_assumed_constant_is_broken_by_the_drift_of_a_weight():
  """The matrix is a millionth above orthogonal, so that 1 is no bound."""
  proved = targets.certified(
    targets.change('blocks/M', lambda m: m * (1 + 1e-6))
  )
  assumed = proved._replace(radii=proved.radii * proved.lipschitz, closed=False)
  starts = rivals_ahead(targets.exact())
  assert count_broken(assumed, starts) > 5
  assert count_broken(proved, starts, rounds=100) == 0


@pytest.mark.parametrize('images', [np.float32, np.float16])
@pytest.mark.parametrize('compute', [jnp.bfloat16, jnp.float16])
def test_narrow_evaluation_sold_as_float32_is_broken(compute, images):
  """Logits have 8 or 11 bits, for images of any format."""
  exact_target = targets.exact()
  target = exact_target._replace(
    apply=target_lib.network(targets.MODEL.clone(dtype=compute)),
    params=targets.PARAMS,
    images=targets.IMAGES.astype(images),
  )
  target = targets.assume(target, exact_target.lipschitz)
  assert count_broken(target, rivals_ahead(exact_target)) > 5


def test_float32_certificates_of_a_tight_network_need_what_they_subtract():
  starts = rivals_ahead(targets.exact())
  fast = targets.certified(kind='fast')
  assert count_broken(fast, starts, rounds=100) == 0
  assert count_broken(targets.assume(fast, fast.lipschitz), starts) > 5
  assert count_broken(targets.exact(), starts, rounds=100) == 0


def test_only_the_error_bound_stands_between_float64_and_a_break():
  """For identity matrices, Λ is 1 to the last bits."""
  params = jax.tree.map(np.copy, targets.PARAMS)
  params['stem']['Q'] = np.eye(16, dtype=np.float32)
  params['blocks']['R'] = params['blocks']['M'][:, :8]
  target = targets.certified(params)
  assert target.lipschitz < 1 + 1e-12
  starts = rivals_ahead(target)
  assert count_broken(target, starts, rounds=100) == 0
  naive = targets.assume(target)
  assert np.all(naive.radii > target.radii)
  # Radii differ by 1e-13, which is enough.
  np.testing.assert_allclose(naive.radii, target.radii, atol=1e-11)
  assert count_broken(naive, starts, rounds=100) > 0


@pytest.mark.parametrize('dtype', targets.FORMATS)
def test_steps_are_units_in_the_last_place(dtype):
  rng = np.random.default_rng(0)
  points = (0.5 + 0.49 * rng.random([200, 8])).astype(dtype)
  moved = floating.rounding_steps(points, rng)
  units = (moved - points.astype(np.float64)) / (ml_dtypes.finfo(dtype).eps / 2)
  sizes = set(np.abs(units[units != 0]).tolist())
  assert {1.0, 2048.0} <= sizes <= {2.0**j for j in range(12)}
  assert 0.3 < np.mean(units != 0) < 0.7
  assert 0.3 < np.mean(units[units != 0] > 0) < 0.7


def test_margins_tell_ties_and_what_is_no_number_from_the_answer():
  images = np.array([[1.0], [0.5], [0.25], [np.nan]])
  target = targets.linear([[-1.0, 1.0]], [1.0, 0.0], images, [1] * 4)
  found = floating.margins(target, images, np.array([1] * 4))
  assert found.tolist() == [1, 0, -0.5, -np.inf]
  assert target.answers(images).tolist() == [1, 0, 0, -1]


def test_bisection_ends_next_to_the_edge():
  images = np.float32([[0.75, 0.5], [0.75, 0.5]])
  weights, bias = np.float32([[-1, 1], [0, 0]]), np.float32([1, 0])
  target = targets.linear(weights, bias, images, [1, 1])
  points = np.float32([[0.1, 0.4], [0.8, 0.5]])
  closer = floating.bisect(target, points)
  assert closer.dtype == np.float32
  np.testing.assert_array_equal(closer[1], points[1])  # Was not adversarial.
  assert target.answers(closer)[0] == 0
  assert 0.5 - 1e-6 < closer[0, 0] <= 0.5
