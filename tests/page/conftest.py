"""Workdirs as runs leave them, made up in milliseconds, of any size."""

import csv
import json

import numpy as np
import pytest

from lipnext_jax.page import gallery

STEP = 40


def _digit(rng, label):
  """Something to look at, [8, 8, 1]: a bright ring or bar on a dark ground."""
  y, x = np.mgrid[-1:1:8j, -1:1:8j]
  ring = np.exp(-8 * (np.hypot(x, y) - 0.2 - 0.06 * (label % 10)) ** 2)
  return np.clip(ring + 0.1 * rng.random((8, 8)), 0, 1)[..., None]


def _make(
  workdir, *, classes=10, per_class=12, depth=8, attack=True, broken=0, seed=0
):
  rng = np.random.default_rng(seed)
  n = classes * per_class
  labels = np.arange(n) % classes
  predictions = np.where(rng.random(n) < 0.9, labels, (labels + 1) % classes)
  radii = rng.gamma(4, 0.15, n).astype(np.float32).astype(float)
  radii[rng.random(n) < 0.05] = 0
  correct = predictions == labels
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'radii.csv', 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['id', 'label', 'prediction', 'radius'])
    rows = zip(
      labels.tolist(), predictions.tolist(), radii.tolist(), strict=True
    )
    writer.writerows((i, *row) for i, row in enumerate(rows))

  cra = {
    f'{e:.6g}': 100 * float(np.mean(correct & (radii > e)))
    for e in (36 / 255, 0.25, 0.5, 1.0)
  }
  factors = {
    name: (1 + 1e-7 * (1 + rng.random(depth))).tolist()
    for name in ('blocks/R', 'blocks/M')
  } | {'stem/Q': [1 + 2e-7]}
  bound = float(np.prod([f for layers in factors.values() for f in layers]))
  dump(
    workdir / 'eval.json',
    {
      'step': STEP,
      'split': 'test',
      'examples': n,
      'clean': 100 * float(np.mean(correct)),
      'cra': cra,
      'lipschitz_bound': bound,
      'lipschitz_bounds': factors,
    },
  )
  dump(
    workdir / 'config.json',
    {
      'dataset.name': 'rings',
      'eval.split': 'test',
      'loss.epsilon': 0.25,
      'model.name': 'lipnext',
      'seed': seed,
      'sharding': [['^params/', []]],
    },
  )
  dump(
    workdir / 'run.json',
    [
      {
        'command': ['main.py', '--workdir=x'],
        'commit': 'c' * 40,
        'uncommitted_changes': True,
        'python': '3.11.7',
        'packages': {'jax': '0.10.2'},
        'devices': {'kind': 'cpu', 'count': 1},
        'mesh': {'data': 1, 'fsdp': 1},
      }
    ],
  )
  with open(workdir / 'metrics.jsonl', 'w') as file:
    for step in range(1, STEP + 1):
      scalars = {
        'train/loss': 3 / step,
        'train/clean': 100 - 60 / step,
        'train/certified': 95 - 90 / step,
        'train/epsilon': 0.01 * step,
        'train/learning_rate': 1e-3 * (STEP + 1 - step) / STEP,
        'train/orthogonality_error': 1e-6 * (1 + rng.random()),
      }
      file.write(json.dumps({'step': step, **scalars}) + '\n')
      if step % 20 == 0:
        monitored = {'monitor/clean': 90.0, 'monitor/certified': 80.0}
        file.write(json.dumps({'step': step, **monitored}) + '\n')

  images = np.stack([_digit(rng, label) for label in labels])
  groups = gallery.choose(labels, predictions, radii)
  rows = np.concatenate(list(groups.values()))
  np.savez(
    workdir / 'gallery.npz',
    group=np.repeat(list(groups), list(map(len, groups.values()))),
    id=rows,
    label=labels[rows],
    prediction=predictions[rows],
    radius=radii[rows].astype(np.float32),
    image=(255 * images[rows]).astype(np.uint8),
  )
  if attack:
    _attack(workdir, rng, labels, predictions, radii, images, broken)
  return workdir


def _attack(workdir, rng, labels, predictions, radii, images, broken):
  n, shown = len(labels), min(4, len(images))
  distances = radii * (1.05 + rng.random(n))
  distances[rng.random(n) < 0.1] = np.inf
  noise = rng.normal(size=images[:shown].shape)
  size = np.sqrt((noise**2).sum((1, 2, 3), keepdims=True))
  step = (1.1 * radii[:shown] + 0.01)[:, None, None, None] * noise / size
  np.savez(
    workdir / 'attack.npz',
    id=np.arange(n),
    label=labels,
    prediction=predictions,
    radius=radii,
    distance=distances,
    shown_id=np.arange(shown),
    original=images[:shown],
    adversarial=images[:shown] + step,
    adversarial_prediction=(predictions[:shown] + 1) % (labels.max() + 1),
  )
  correct = labels == predictions
  table = {}
  for e in (0.25, 0.5):
    cra = 100 * float(np.mean(correct & (radii > e)))
    robust = 100 * float(np.mean(correct & (distances > e)))
    table[f'{e:g}'] = {'cra': cra, 'robust': robust, 'gap': robust - cra}
  dump(
    workdir / 'attack.json',
    {
      'step': STEP,
      'split': 'test',
      'examples': n,
      'seed': 0,
      'certificate': 'fast',
      'runs': 12345,
      'broken': broken,
      'broken_ids': list(range(broken)),
      'clean': 100 * float(np.mean(correct)),
      'epsilons': table,
      'attacks': {
        'pgd': {'runs': 10000, 'successes': 900},
        'float': {'runs': 2345, 'successes': 0},
      },
      'lipschitz_bound': 1.000006,
      'lipschitz_lower_bound': 0.9871,
      'seconds': 12.0,
    },
  )


def dump(path, value):
  path.write_text(json.dumps(value))


@pytest.fixture(scope='session')
def make_workdir():
  """Makes a workdir: (path, **sizes) → path."""
  return _make


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  """One with everything in it. Not to be written to."""
  return _make(tmp_path_factory.mktemp('page') / 'rings')
