"""Runs all attacks on a target, and summarises the results."""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import itertools
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import certify
from lipnext_jax.attacks import exact
from lipnext_jax.attacks import floating
from lipnext_jax.attacks import gradient
from lipnext_jax.attacks import target as target_lib

_SHOWN = 4  # Number of adversarial examples to show.
# The nearest adversarial example is searched within so many certified radii.
_BEYOND = 1.5


class Settings(NamedTuple):
  """The effort of the attacks; the defaults take two minutes on digits."""

  restarts: int = 5  # Starts of a gradient attack, with and without [0, 1].
  steps: int = 40  # Steps of a gradient attack.
  # (method, loss); the last one also searches the nearest adversarial example.
  searches: tuple[tuple[str, str], ...] = (
    ('pgd', 'cross_entropy'),
    ('pgd', 'rival_margin'),
    ('apgd', 'cross_entropy'),
    ('apgd', 'dlr'),
  )
  rounds: int = 20  # Rounds of the floating-point walk.
  candidates: int = 16  # Random steps that a round tries for each image.


def attack_target(
  target: target_lib.Target,
  epsilons: Sequence[float],
  settings: Settings | None = None,
  *,
  seed: int = 0,
  log: Callable[[str], None] = lambda message: None,
  tick: Callable[[int], None] = lambda total: None,
) -> target_lib.Ledger:
  """Tries to break every certificate, and finds near adversarial examples.

  docs/attacks.md lists the stages.

  Args:
    target: target under attack.
    epsilons: reported ℓ2 radii, in [0, 1] pixel units.
    settings: effort of the attacks.
    seed: seed of every random draw.
    log: function that gets a line after each stage.
    tick: function that gets the number of all attacks, after each attack.
  """
  s = settings or Settings()
  ledger = target_lib.Ledger(target)
  rng = np.random.default_rng(seed)
  rivals = [gradient.nearest_rivals(target, rank) for rank in range(s.restarts)]
  radii = np.minimum(target.radii, exact.FARTHEST)
  starts: collections.deque[np.ndarray] = collections.deque(maxlen=2)
  searches = len(s.searches) * (s.restarts + len(epsilons)) + s.restarts
  total = 2 * searches + 3  # With and without a box; and three walks.

  def search(searches, rivals, limits, where, *, at_radius=False):
    for box, (method, loss), rival in itertools.product(
      (False, True), searches, rivals
    ):
      points = gradient.attack(
        target, method, loss, limits, rival,
        steps=s.steps, seed=int(rng.integers(2**31)), box=box,
      )  # fmt: skip
      closed = target.closed or not at_radius
      points = exact.pull_inside(target.images, points, limits, closed=closed)
      name = f'{method} {loss}, {"in [0, 1]" if box else "anywhere"}, {where}'
      ledger.judge(name, points, at_radius=at_radius)
      if at_radius:
        starts.append(points)
      else:
        ledger.judge('bisection', floating.bisect(target, points))
      tick(total)

  def report(stage):
    known = np.isfinite(ledger.anywhere.distances)
    log(
      f'{stage}: {np.sum(known)} of {known.size} answers changed, '
      f'{ledger.certified_runs} runs up to a certified radius, '
      f'{np.sum(ledger.broken)} certificates broken'
    )

  search(s.searches, rivals, radii, 'at the radius', at_radius=True)
  report('gradient attacks at the certified radii')

  for epsilon in epsilons:
    limits = np.full(len(radii), float(epsilon))
    search(s.searches, rivals[:1], limits, 'at ε')
  for rival in rivals:  # Balls shrink to the nearest example so far.
    limits = np.minimum(_BEYOND * radii, ledger.anywhere.distances)
    search(s.searches[-1:], [rival], limits, 'beyond the radius')
  report('gradient attacks beyond them')

  for start in (ledger.anywhere.points, *starts):
    points = floating.attack(
      target, start,
      rounds=s.rounds, candidates=s.candidates, seed=int(rng.integers(2**31)),
    )  # fmt: skip
    ledger.judge('floating-point walk', points, at_radius=True)
    tick(total)
  report('floating-point walk to the certified spheres')
  return ledger


def summarise(
  ledger: target_lib.Ledger, labels: np.ndarray, epsilons: Sequence[float]
) -> dict[str, Any]:
  """Returns the results that `attack.json` holds.

  For each ε, `robust` is the per cent of correct answers that no point found at
  distance <= ε changes, `robust_in_box` the same for points in [0, 1]. They
  bound the true robust accuracy from above, and CRA bounds it from below;
  `gap` is robust − CRA.

  Args:
    ledger: ledger of `attack_target`.
    labels: [n] int, true classes.
    epsilons: reported ℓ2 radii.
  """
  target = ledger.target
  correct = target.predictions == labels
  cra = certify.certified_accuracy(
    target.predictions, target.radii, labels, epsilons
  )
  rows = {}
  for epsilon in epsilons:
    robust, in_box = (
      100 * float(np.mean(correct & (best.distances > epsilon)))
      for best in (ledger.anywhere, ledger.in_box)
    )
    rows[f'{epsilon:.6g}'] = {
      'cra': cra[epsilon],
      'robust': robust,
      'robust_in_box': in_box,
      'gap': robust - cra[epsilon],
    }
  held = target.radii > 0
  ratios = ledger.anywhere.distances[held] / target.radii[held]
  least = float(np.min(ratios, initial=np.inf))
  return {
    'examples': len(labels),
    'clean': 100 * float(np.mean(correct)),
    'runs': ledger.certified_runs,
    'broken': int(np.sum(ledger.broken)),
    'broken_ids': np.flatnonzero(ledger.broken).tolist(),
    # Least ratio of the distance found and the certified radius; None: no such.
    'least_ratio': least if np.isfinite(least) else None,
    'epsilons': rows,
    'attacks': ledger.attacks,
  }


def arrays(
  ledger: target_lib.Ledger, labels: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the arrays that `attack.npz` holds.

  Each has a row per example, or a row for each of the few that are shown: those
  with a correct answer and the least ratio of the distance found in [0, 1] and
  the certified radius. Args are those of `summarise`.
  """
  target, best = ledger.target, ledger.in_box
  held = (target.predictions == labels) & (target.radii > 0)
  ratios = np.full(len(labels), np.inf)
  np.divide(best.distances, target.radii, out=ratios, where=held)
  shown = np.argsort(ratios, kind='stable')[:_SHOWN]
  shown = shown[np.isfinite(ratios[shown])]
  return {
    'id': np.arange(len(labels)),
    'label': labels,
    'prediction': target.predictions,
    'radius': target.radii,
    'distance': ledger.anywhere.distances,
    'distance_in_box': best.distances,
    'shown_id': shown,
    'original': target.images[shown].astype(np.float32),
    'adversarial': best.points[shown].astype(np.float32),
    'adversarial_prediction': best.answers[shown],
  }
