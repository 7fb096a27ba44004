"""All attacks on all certificates of a target, in order, and their yield."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import certify
from lipnext_jax.attacks import exact
from lipnext_jax.attacks import floating
from lipnext_jax.attacks import gradient
from lipnext_jax.attacks import ledger as ledger_lib
from lipnext_jax.attacks import library
from lipnext_jax.attacks import target as target_lib

_SHOWN = 6  # Adversarial examples kept for people to look at.


class Settings(NamedTuple):
  """How hard to try; the defaults take about two minutes for digits."""

  restarts: int = 5  # Of each gradient attack, in the ball and in its box.
  steps: int = 40  # Of each attack.
  foolbox: tuple[str, ...] = library.ATTACKS  # Minimal-distance attacks.
  searches: tuple[tuple[str, str], ...] = (  # Methods and their losses.
    ('pgd', 'cross_entropy'),
    ('pgd', 'rival_margin'),
    ('apgd', 'cross_entropy'),
    ('apgd', 'dlr'),
  )
  rounds: int = 20  # Of random steps of the floating-point walk.
  candidates: int = 16  # Per image and round.


def attack_target(
  target: target_lib.Target,
  epsilons: Sequence[float],
  settings: Settings | None = None,
  *,
  seed: int = 0,
  say: Callable[[str], None] = lambda message: None,
) -> ledger_lib.Ledger:
  """Tries to break every certificate, and to get as close as possible.

  1. Minimal-distance attacks (foolbox) with pixels in [0, 1] and without.
  2. Gradient attacks up to the certified radius of each image, every result
     pulled to representable points inside its ball; both with and without
     [0, 1]. These can only succeed against a certificate that is wrong.
  3. The same at each reported ε, for the empirical robust accuracy.
  4. What was found, moved towards its image as far as it stays adversarial.
  5. The floating-point walk to the certified sphere, from the nearest
     adversarial example and from the ends of two gradient attacks.

  Args:
    target: certificates and their arithmetic.
    epsilons: reported ℓ2 radii, in [0, 1] pixel units.
    settings: how hard to try.
    seed: of every random draw.
    say: gets a line after each stage.

  Returns:
    The ledger: nearest adversarials, broken certificates, counts.
  """
  s = settings or Settings()
  ledger = ledger_lib.Ledger(target)
  searches = [gradient.Search(m, loss, s.steps) for m, loss in s.searches]
  rng = np.random.default_rng(seed)

  def draw() -> int:
    return int(rng.integers(2**31))

  for box in (True, False):
    where = _where(box)
    for name, points, options in library.minimal(
      target, s.foolbox, steps=s.steps, box=box
    ):
      ledger.judge(f'{name}, {where}', points, options)
  say(_found(ledger, 'minimal-distance attacks'))

  starts: list[np.ndarray] = []
  reach = np.minimum(target.radii, exact.FARTHEST)
  ranks = range(max(s.restarts, 1))
  rivals = [gradient.nearest_rivals(target, rank) for rank in ranks]
  for box in (False, True):
    for search in searches:
      name = f'{search.method} {search.loss}, {_where(box)}, at the radius'
      for rival in rivals[: s.restarts]:
        points = gradient.attack(
          target, search, reach, rival, seed=draw(), box=box
        )
        points = exact.pull_inside(
          target.images, points, reach, closed=target.closed
        )
        ledger.judge(name, points, search._asdict(), at_radius=True)
        starts = [*starts[-1:], points]
  say(_found(ledger, 'gradient attacks at the certified radii'))

  for epsilon in epsilons:
    limits = np.full(len(target.images), float(epsilon))
    for box in (False, True):
      for search in searches:
        name = f'{search.method} {search.loss}, {_where(box)}, at ε'
        points = gradient.attack(
          target, search, limits, rivals[0], seed=draw(), box=box
        )
        points = exact.pull_inside(target.images, points, limits, closed=True)
        ledger.judge(name, points, search._asdict(), epsilons=limits)
  say(_found(ledger, 'gradient attacks at the reported ε'))

  for best in (ledger.in_box, ledger.anywhere):
    ledger.judge('bisection', floating.bisect(target, best.points), {})

  options = {'rounds': s.rounds, 'candidates': s.candidates}
  for start in (ledger.anywhere.points, *starts):
    points = floating.attack(target, start, seed=draw(), **options)
    ledger.judge('floating-point walk', points, options, at_radius=True)
  say(_found(ledger, 'floating-point walk to the certified spheres'))
  return ledger


def _where(box: bool) -> str:
  return 'in [0, 1]' if box else 'anywhere'


def _found(ledger: ledger_lib.Ledger, what: str) -> str:
  known = np.isfinite(ledger.anywhere.distances)
  return (
    f'{what}: {np.sum(known)} of {known.size} answers changed, '
    f'{ledger.certified_runs} runs up to a certified radius, '
    f'{np.sum(ledger.broken)} certificates broken'
  )


def summarise(
  ledger: ledger_lib.Ledger,
  ids: np.ndarray,
  labels: np.ndarray,
  epsilons: Sequence[float],
) -> dict[str, Any]:
  """What `attack.json` says of the attacks.

  `robust` counts correct answers for which nothing at distance <= ε changes
  them; `robust_in_box` only what lies in [0, 1]. Both are upper bounds on what
  is truly robust, as CRA is a lower bound; the gap is robust − CRA, in points.

  Args:
    ledger: of `attack_target`.
    ids: [n] int, positions in the split.
    labels: [n] int.
    epsilons: reported ℓ2 radii.
  """
  target = ledger.target
  correct = target.predictions == labels
  cra = certify.certified_accuracy(
    target.predictions, target.radii, labels, epsilons
  )

  def robust(best, epsilon):
    return 100 * float(np.mean(correct & (best.distances > epsilon)))

  rows = {}
  for epsilon in epsilons:
    anywhere = robust(ledger.anywhere, epsilon)
    rows[f'{epsilon:.6g}'] = {
      'cra': cra[epsilon],
      'robust': anywhere,
      'robust_in_box': robust(ledger.in_box, epsilon),
      'gap': anywhere - cra[epsilon],
    }
  held = target.radii > 0
  ratios = ledger.anywhere.distances[held] / target.radii[held]
  least = float(np.min(ratios, initial=np.inf))
  return {
    'examples': len(labels),
    'clean': 100 * float(np.mean(correct)),
    'runs': ledger.certified_runs,
    'broken': int(np.sum(ledger.broken)),
    'broken_ids': ids[ledger.broken].tolist(),
    # Nearest adversarial over certified radius; None: no example of either.
    'least_ratio': least if np.isfinite(least) else None,
    'epsilons': rows,
    'attacks': ledger.attacks,
  }


def arrays(
  ledger: ledger_lib.Ledger, ids: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
  """What `attack.npz` holds: a row per example, and a few to look at.

  Shown are images in [0, 1] with correct answers, whose nearest adversarial
  example in [0, 1] is closest to the certified ball, by distance over radius.

  Args:
    ledger: of `attack_target`.
    ids: [n] int, positions in the split.
    labels: [n] int.
  """
  target, best = ledger.target, ledger.in_box
  usable = (target.predictions == labels) & (target.radii > 0)
  usable &= np.isfinite(best.distances)
  ratio = np.full(len(labels), np.inf)
  ratio[usable] = best.distances[usable] / target.radii[usable]
  shown = np.argsort(ratio, kind='stable')[: min(_SHOWN, int(np.sum(usable)))]
  return {
    'id': ids,
    'label': labels,
    'prediction': target.predictions,
    'radius': target.radii,
    'distance': ledger.anywhere.distances,
    'distance_in_box': best.distances,
    'shown_id': ids[shown],
    'original': target.images[shown].astype(np.float32),
    'adversarial': best.points[shown].astype(np.float32),
    'adversarial_prediction': best.answers[shown],
  }
