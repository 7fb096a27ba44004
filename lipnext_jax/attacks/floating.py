"""Attacks rounding: searches the representable points next to a sphere.

Gradient attacks treat an input as a vector of real numbers. A certificate is
about the numbers that exist: near its sphere there are astronomically many,
with logits that differ by rounding alone, and one of them may be answered
differently. (The idea, against other certificates: J. Jin et al., "Getting a-
Round Guarantees: Floating-Point Attacks on Certified Robustness", arXiv
2205.10159.)

From each start the walk goes to the last representable point inside the ball,
then random steps of a few units in the last place, pulled back inside, are kept
whenever they bring the margin down, as the arithmetic under attack computes it.
"""

import numpy as np

from lipnext_jax.attacks import exact
from lipnext_jax.attacks import target as target_lib

# Steps of up to 2^11 units in the last place: from rounding to geometry.
_LARGEST_EXPONENT = 11


def margins(target: target_lib.Target, points: np.ndarray, labels: np.ndarray):
  """Computes f_y − max_{j≠y} f_j of points [m, …] with labels y: [m] float64.

  It is at most 0 where the answer may change, and −∞ where logits are NaN.
  """
  logits = target.logits(points).astype(np.float64)
  own = np.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
  np.put_along_axis(logits, labels[:, None], -np.inf, axis=-1)
  margin = own - np.max(logits, axis=-1)
  return np.where(np.isnan(margin), -np.inf, margin)


def rounding_steps(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Steps some coordinates by ±2^j units in the last place, at random.

  One exponent j and one share of moving coordinates are drawn for each of the
  points [m, …]. Returns float64, not yet rounded.
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
  """Walks every start to the certified sphere, and along it.

  Args:
    target: the certificates.
    starts: [n, H, W, ch], points on the rays to walk along: nearest adversarial
      examples of other attacks, or ends of gradient attacks.
    rounds: number of random steps.
    candidates: number of steps tried per image and round.
    seed: of the steps.

  Returns:
    [n, H, W, ch] in the format of the images, inside the balls, each with the
    smallest margin that was met (the first whose answer changes, if any does).
  """
  rng = np.random.default_rng(seed)

  def pull(points, rows):
    return exact.pull_inside(
      target.images[rows],
      points,
      target.radii[rows],
      closed=target.closed,
      to_sphere=True,
    )

  best = pull(starts, slice(None))
  score = margins(target, best, target.predictions)
  for _ in range(rounds):
    # Broken certificates are done; balls of radius 0 hold nothing to walk.
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


def bisect(
  target: target_lib.Target, points: np.ndarray, *, steps: int = 30
) -> np.ndarray:
  """Moves adversarial points towards their images, as far as they stay so.

  `steps` times it halves the segment from each image to its point, [n, H, W,
  ch]. Points that are not adversarial stay where they are.
  """
  images = target.images.astype(np.float64)
  points = np.asarray(points).astype(target.images.dtype)
  delta = points.astype(np.float64) - images
  low, high = np.zeros(len(points)), np.ones(len(points))
  best = points
  for _ in range(steps):
    middle = (low + high) / 2
    wide = middle.reshape(-1, *[1] * (points.ndim - 1))
    tried = (images + wide * delta).astype(points.dtype)
    changed = target.answers(tried) != target.predictions
    best = np.where(changed.reshape(wide.shape), tried, best)
    low, high = np.where(changed, low, middle), np.where(changed, middle, high)
  return best
