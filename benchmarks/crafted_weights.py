"""Attacks certificates of weights that were crafted to fool float32.

    python -m benchmarks.crafted_weights --workdir=runs/digits

Adds constants to a trained LipNeXt that Λ does not depend on: a later layer
subtracts them, or all logits share them. Then attacks three certificates of the
test split: `fast`, `rigorous`, and `untested`, which is fast without the test
for rounding. The search takes random points inside of the certified balls, and
points where the answer changes on the way to other images. Prints Markdown
tables, certified accuracy of the untouched model, and times.
"""

import argparse
from collections.abc import Iterator
import functools
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax.attacks import floating
from lipnext_jax.attacks import target as target_lib
from lipnext_jax.checkpoint import restore
from lipnext_jax.data import sources


def craft(params: Any, stem: float, pos: float, head: float) -> Any:
  """Adds constants to the stem's bias, the second p and the head's bias.

  The shift keeps a constant, so a block maps it to M times the constant, which
  is subtracted from the block's bias.
  """
  params = jax.tree.map(np.array, params)
  params['stem']['bias'] += np.float32(stem)
  params['blocks']['pos'][1] += np.float32(pos)
  params['head']['bias'] += np.float32(head)
  for layer, constant in enumerate((stem, pos)):
    m = params['blocks']['M'][layer].astype(np.float64)
    undone = np.sum(m * constant, axis=1)
    params['blocks']['bias'][layer] -= np.float32(undone)
  return params


def list_cases() -> Iterator[tuple[str, tuple[float, float, float]]]:
  """Yields names and arguments of `craft`."""
  yield 'untouched', (0, 0, 0)
  for k in (20, 24, 26, 30):
    yield f'head bias + 2^{k}', (0, 0, 2.0**k)
  for c in (1e4, 1e6, 2.0**23, 1e8):
    yield f'stem bias + {c:.0e}, undone', (c, 0, 0)
  for c in (1e5, 1e7):
    yield f'p + {c:.0e}, undone', (0, c, 0)


def without_test(target: target_lib.Target) -> target_lib.Target:
  """Returns a target that certifies every positive margin."""
  logits = target.logits(target.images).astype(np.float64)
  kernel = models.head_kernel({'params': target.params})
  rows = np.asarray(kernel).astype(np.float64)
  p = target.predictions
  apart = np.linalg.norm(rows[p][:, None] - rows[None], axis=-1)
  margins = np.max(logits, axis=-1, keepdims=True) - logits
  apart[np.arange(len(p)), p] = 0  # Excludes the class itself.
  with np.errstate(divide='ignore', invalid='ignore'):
    quotients = np.where(apart > 0, margins / apart, np.inf)
  return target._replace(radii=np.min(quotients, axis=-1) / target.lipschitz)


def make_targets(model, params, images) -> list[target_lib.Target]:
  """Returns what to attack: untested, fast and rigorous certificates."""
  fast, exact = (
    target_lib.certified_target(kind, model, params, images)
    for kind in ('fast', 'rigorous')
  )
  return [without_test(fast), fast, exact]


def search(target: target_lib.Target, rounds: int) -> int:
  """Counts the certificates that the search breaks."""
  rng, ledger = np.random.default_rng(0), target_lib.Ledger(target)
  images = target.images
  axes = tuple(range(1, images.ndim))
  for _ in range(rounds):
    d = rng.normal(size=images.shape)
    d /= np.sqrt(np.sum(d**2, axis=axes, keepdims=True))
    sizes = 0.9 * np.minimum(target.radii, 3) * rng.random(len(images)) ** 3
    points = images + sizes.reshape(-1, 1, 1, 1) * d
    ledger.judge('random', points)
    others = images[rng.permutation(len(images))]
    ledger.judge('edges', floating.bisect(target, others))
  return int(np.sum(ledger.broken))


def main():
  """Parses the command line, attacks, prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--examples', type=int, default=0, help='0: all')
  args = parser.parse_args()
  run = restore.restore(args.workdir)
  source = sources.load_dataset(run.config.dataset).test
  count = args.examples or len(source)
  images = np.stack([source[i]['image'] for i in range(count)])
  labels = np.array([source[i]['label'] for i in range(count)])

  def attacked():
    for name, constants in list_cases():
      yield (
        name,
        *(
          f'{np.sum(t.radii > 0)} / {search(t, args.rounds)} / '
          f'{np.median(t.radii):.3g}'
          for t in make_targets(
            run.model, craft(run.params, *constants), images
          )
        ),
      )

  kinds = ('float32, untested', 'fast', 'rigorous')
  title = f'{len(images)} images: certified / broken / median radius'
  timing.table(('weights', *kinds), attacked(), title)

  epsilons = run.config.eval.epsilons
  untouched = make_targets(run.model, run.params, images)
  accuracies = [
    certify.certified_accuracy(t.predictions, t.radii, labels, epsilons)
    for t in untouched
  ]
  timing.table(
    ('ε', *kinds),
    ((f'{e:.6g}', *(f'{a[e]:.2f} %' for a in accuracies)) for e in epsilons),
  )
  fast = certify.fast_certifier(run.model, run.params)
  rigorous = certify.rigorous_certifier(run.model, run.params)
  calls = [functools.partial(call, images) for call in (fast, rigorous)]
  for name, seconds in zip(kinds[1:], timing.medians(calls, 5), strict=True):
    print(f'{name}: {1e3 * seconds / len(images):.3f} ms an image')


if __name__ == '__main__':
  main()
