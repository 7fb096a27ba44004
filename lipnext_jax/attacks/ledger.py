"""The referee, which judges every point that an attack proposes.

The function under attack says, in its own arithmetic, whether the answer
changed. `exact` decides whether the point is in the ball.
"""

from typing import NamedTuple

import numpy as np

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import target as target_lib


class Best(NamedTuple):
  """The nearest adversarial example found so far for each image."""

  distances: np.ndarray  # Shape (n,): float64, ℓ2; infinite if none was found.
  points: np.ndarray  # Shape (n, H, W, ch): the image if none was found.
  answers: np.ndarray  # Shape (n,): int.

  def update(self, *found: np.ndarray) -> None:
    """Takes distances, points and answers where they are nearer, in place."""
    nearer = found[0] < self.distances
    for mine, new in zip(self, found, strict=True):
      mine[nearer] = new[nearer]


class Ledger:
  """The results of all attacks on one target so far.

  Attributes:
    target: target under attack.
    anywhere: nearest adversarial examples with any pixels.
    in_box: nearest adversarial examples with all pixels in [0, 1].
    broken: [n] bool, certificates with a counterexample in their ball.
    attacks: {name: {'runs', 'successes'}}.
    certified_runs: number of runs that searched up to a certified radius.
  """

  def __init__(self, target: target_lib.Target):
    """Starts a ledger by judging the images themselves."""
    self.target = target
    self.anywhere, self.in_box = (
      Best(
        distances=np.full(len(target.images), np.inf),
        points=target.images.copy(),
        answers=target.predictions.astype(np.int64),
      )
      for _ in range(2)
    )
    self.broken = np.zeros(len(target.images), bool)
    self.attacks: dict[str, dict[str, int]] = {}
    self.certified_runs = 0
    self.judge('unperturbed', target.images)

  def judge(
    self, name: str, points: np.ndarray, *, at_radius: bool = False
  ) -> None:
    """Records one point per image.

    Args:
      name: name of the attack, for which runs and successes are added up.
      points: [n, H, W, ch], rounded here to the dtype of the images.
      at_radius: whether the attack searched up to the certified radius.
    """
    target = self.target
    points = np.asarray(points).astype(target.images.dtype)
    answers = target.answers(points)
    changed = answers != target.predictions
    self.broken |= changed & exact.is_inside(
      target.images, points, target.radii, closed=target.closed
    )

    distances = exact.distances(target.images, points)
    found = np.where(changed, distances, np.inf)
    self.anywhere.update(found, points, answers)
    wide = points.reshape(len(points), -1).astype(np.float64)
    boxed = np.all((wide >= 0) & (wide <= 1), axis=-1)
    self.in_box.update(np.where(boxed, found, np.inf), points, answers)

    entry = self.attacks.setdefault(name, {'runs': 0, 'successes': 0})
    entry['runs'] += len(points)
    entry['successes'] += int(np.sum(changed))
    self.certified_runs += len(points) * at_radius
