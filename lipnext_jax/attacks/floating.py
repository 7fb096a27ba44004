"""The floating-point walk, an attack on a certificate's rounding.

See docs/attacks.md, and J. Jin et al., "Getting a-Round Guarantees:
Floating-Point Attacks on Certified Robustness", arXiv 2205.10159.
"""

import numpy as np

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import target as target_lib

_LARGEST_EXPONENT = 11  # Steps of up to 2¹¹ units in the last place.
_BISECTIONS = 30


def margins(target: target_lib.Target, points: np.ndarray, labels: np.ndarray):
  """Computes f_y − max_{j≠y} f_j for points [m, …] with labels y: [m] float64.

  A margin of at most 0 may change the answer; it is −∞ for logits of nan.
  """
  logits = target.logits(points).astype(np.float64)
  own = np.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  np.put_along_axis(logits, labels[:, None], -np.inf, axis=-1)
  margin = own - np.max(logits, axis=-1)
  return np.where(np.isnan(margin), -np.inf, margin)


def rounding_steps(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Moves random coordinates of points [m, …] by ±2^j units in the last place.

  The exponent j and the share of moved coordinates are drawn for each point.
  The result is float64 and not yet rounded.
  """
  one_each = (len(points), *[1] * (points.ndim - 1))
  up = np.nextafter(points, np.full_like(points, np.inf)).astype(np.float64)
  wide = points.astype(np.float64)
  units = 2.0 ** rng.integers(0, _LARGEST_EXPONENT + 1, one_each)
  moving = rng.random(points.shape) < rng.random(one_each)
  signs = rng.choice([-1.0, 1.0], points.shape)
  return wide + (up - wide) * units * moving * signs


def attack(
  target: target_lib.Target,
  starts: np.ndarray,
  *,
  rounds: int,
  candidates: int,
  seed: int,
) -> np.ndarray:
  """Walks from every start to the certified sphere, and along it.

  Args:
    target: target under attack.
    starts: [n, H, W, ch], e.g. nearest adversarial examples of other attacks.
      Each gives the ray on which the walk goes to the sphere.
    rounds: number of rounds of random steps.
    candidates: number of steps tried per image and round.
    seed: seed of the steps.

  Returns:
    [n, H, W, ch] in the dtype of the images: the point of the smallest margin
    in each ball, or the first one with another answer.
  """
  rng = np.random.default_rng(seed)

  def pull(points, rows):
    images, radii = target.images[rows], target.radii[rows]
    return exact.pull_inside(
      images, points, radii, closed=target.closed, to_sphere=True
    )

  best = pull(starts, slice(None))
  score = margins(target, best, target.predictions)
  for _ in range(rounds):
    # Skips broken certificates, and balls of radius 0.
    active = np.flatnonzero((score >= 0) & (target.radii > 0))
    if not active.size:
      break
    for block in exact.blocks(target.images[active], candidates):
      rows = np.repeat(active[block], candidates)
      points = pull(rounding_steps(best[rows], rng), rows)
      found = margins(target, points, target.predictions[rows])
      found = found.reshape(-1, candidates)
      lowest = np.argmin(found, axis=-1) + candidates * np.arange(len(found))
      better = found.ravel()[lowest] < score[active[block]]
      changed, lowest = active[block][better], lowest[better]
      best[changed], score[changed] = points[lowest], found.ravel()[lowest]
  return best


def bisect(target: target_lib.Target, points: np.ndarray) -> np.ndarray:
  """Moves adversarial points towards their images by bisection.

  The points [n, H, W, ch] stay adversarial; others do not move.
  """
  images = target.images.astype(np.float64)
  points = np.asarray(points).astype(target.images.dtype)
  delta = points.astype(np.float64) - images
  low, high = np.zeros(len(points)), np.ones(len(points))
  best = points
  for _ in range(_BISECTIONS):
    middle = (low + high) / 2
    wide = middle.reshape(-1, *[1] * (points.ndim - 1))
    tried = (images + wide * delta).astype(points.dtype)
    changed = target.answers(tried) != target.predictions
    best = np.where(changed.reshape(wide.shape), tried, best)
    low, high = np.where(changed, low, middle), np.where(changed, middle, high)
  return best
