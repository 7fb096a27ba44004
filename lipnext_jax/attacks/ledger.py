"""The referee: every point an attack proposes is judged here, exactly.

An attack only proposes. Whether the answer changed is asked of the function
under attack in its own arithmetic, how far away the point is of exact numbers.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import target as target_lib


class Best(NamedTuple):
  """The nearest adversarial example found for each image, if any."""

  distances: np.ndarray  # Shape (n,): float64, ℓ2; infinity: none found.
  points: np.ndarray  # Shape (n, H, W, ch): the image itself where none is.
  answers: np.ndarray  # Shape (n,): int.

  @classmethod
  def nothing(cls, target: target_lib.Target) -> 'Best':
    """No adversarial example yet."""
    return cls(
      distances=np.full(len(target.images), np.inf),
      points=target.images.copy(),
      answers=target.predictions.astype(np.int64),
    )

  def update(
    self,
    rows: np.ndarray,
    distances: np.ndarray,
    points: np.ndarray,
    answers: np.ndarray,
  ) -> None:
    """Takes what is nearer, in place; infinite distances change nothing."""
    lowest, choice = target_lib.lowest_per_row(
      distances, rows, len(self.distances)
    )
    nearer = np.flatnonzero(lowest < self.distances)
    chosen = choice[nearer]
    self.distances[nearer] = distances[chosen]
    self.points[nearer] = points[chosen]
    self.answers[nearer] = answers[chosen]


class Ledger:
  """What the attacks on one target have found so far.

  Attributes:
    target: what is attacked.
    anywhere: nearest adversarials, whatever their pixels.
    in_box: nearest adversarials with all pixels in [0, 1].
    broken: [n] bool: certificates with a counterexample inside their ball.
    attacks: {name: {'runs', 'successes', its settings}}.
    certified_runs: attack runs that ended at a certified radius.
  """

  def __init__(self, target: target_lib.Target):
    """Judges the images themselves first: each must get its own answer."""
    self.target = target
    self.anywhere, self.in_box = Best.nothing(target), Best.nothing(target)
    self.broken = np.zeros(len(target.images), bool)
    self.attacks: dict[str, dict[str, Any]] = {}
    self.certified_runs = 0
    self.judge('unperturbed', target.images, {})

  def judge(
    self,
    name: str,
    points: np.ndarray,
    settings: dict[str, Any],
    *,
    rows: np.ndarray | None = None,
    epsilons: np.ndarray | None = None,
    at_radius: bool = False,
  ) -> np.ndarray:
    """Records one point per image (or per row).

    Args:
      name: of the attack, under which runs and successes are added up.
      points: [m, H, W, ch], rounded here to the format of the images.
      settings: recorded with the name.
      rows: [m] int: whose points they are; by default all, in order.
      epsilons: [m]: a point further away is no success (but is remembered).
      at_radius: whether the runs searched up to the certified radius.

    Returns:
      [m] bool: the answer changed (within ε, if given).
    """
    target = self.target
    if rows is None:
      rows = np.arange(len(target.images))
    points = np.asarray(points).astype(target.images.dtype)
    images = target.images[rows]
    answers = target.answers(points)
    changed = answers != target.predictions[rows]
    inside = exact.is_inside(
      images, points, target.radii[rows], closed=target.closed
    )
    distances = exact.distances(images, points)
    self.broken[rows[changed & inside]] = True

    wide = points.reshape(len(points), -1).astype(np.float64)
    boxed = np.all((wide >= 0) & (wide <= 1), axis=-1)
    found = np.where(changed, distances, np.inf)
    self.anywhere.update(rows, found, points, answers)
    found = np.where(boxed, found, np.inf)
    self.in_box.update(rows, found, points, answers)
    if epsilons is not None:
      changed = changed & (distances <= epsilons)
    entry = self.attacks.setdefault(
      name, {'runs': 0, 'successes': 0, **settings}
    )
    entry['runs'] += len(rows)
    entry['successes'] += int(np.sum(changed))
    if at_radius:
      self.certified_runs += len(rows)
    return changed
