import numpy as np
import pytest

from lipnext_jax.attacks import ledger as ledger_lib
from tests.attacks import targets

# Class 1 where x_0 > 1/2.
TARGET = targets.linear(
  [[-1.0, 1.0], [0.0, 0.0]],
  [1.0, 0.0],
  np.array([[0.75, 0.5], [0.25, 0.5]]),
  [0.25, 0.25],
)


def test_images_that_get_their_own_answers_break_nothing():
  ledger = ledger_lib.Ledger(TARGET)
  assert TARGET.predictions.tolist() == [1, 0]
  assert not ledger.broken.any()
  assert ledger.certified_runs == 0
  assert ledger.attacks == {'unperturbed': {'runs': 2, 'successes': 0}}
  assert np.isinf(ledger.anywhere.distances).all()


def test_a_prediction_that_is_not_the_functions_is_broken_at_once():
  ledger = ledger_lib.Ledger(TARGET._replace(predictions=np.array([0, 0])))
  assert ledger.broken.tolist() == [True, False]
  assert ledger.anywhere.distances.tolist() == [0, np.inf]


@pytest.mark.parametrize(
  ('x', 'closed', 'broken'),
  [
    (0.5, True, True),  # A tie on the sphere: class 0 wins it.
    (0.5, False, False),
    (np.nextafter(0.5, 1), True, False),  # Inside, and the answer holds.
    (np.nextafter(0.5, 0), True, False),  # It changes, one unit outside.
    (np.nan, True, False),  # No point of the ball.
  ],
)
def test_broken_is_decided_to_the_last_bit(x, closed, broken):
  ledger = ledger_lib.Ledger(TARGET._replace(closed=closed))
  points = TARGET.images.copy()
  points[0, 0] = x
  ledger.judge('walk', points, at_radius=True)
  assert ledger.broken.tolist() == [broken, False]
  assert ledger.certified_runs == 2


def test_the_nearest_is_kept_with_and_without_the_box():
  ledger = ledger_lib.Ledger(TARGET)
  points = np.array([[0.4, 0.5], [0.45, 0.5], [0.3, 0.5]])
  for point in points:
    ledger.judge('some', np.stack([point, [0.6, 1.01]]))
  assert ledger.attacks['some'] == {'runs': 6, 'successes': 6}
  np.testing.assert_allclose(
    ledger.anywhere.distances, [0.3, np.hypot(0.35, 0.51)]
  )
  np.testing.assert_allclose(ledger.in_box.distances, [0.3, np.inf])
  np.testing.assert_array_equal(
    ledger.anywhere.points, [[0.45, 0.5], [0.6, 1.01]]
  )
  assert ledger.anywhere.answers.tolist() == [0, 1]
  ledger.judge('worse', np.array([[0.2, 0.5], [0.7, 1.01]]))
  np.testing.assert_allclose(ledger.in_box.distances, [0.3, np.inf])
