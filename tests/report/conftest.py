"""Makes a workdir like that of a run in milliseconds."""

import shutil
import types

import numpy as np
import pytest

from lipnext_jax import evaluate
from lipnext_jax import files
from lipnext_jax import report
from lipnext_jax.attacks import run
from lipnext_jax.attacks import target
from lipnext_jax.data import views
from lipnext_jax.report import records

CONFIG = types.SimpleNamespace(
  dataset=types.SimpleNamespace(name='rings'),
  eval=types.SimpleNamespace(epsilons=(36 / 255, 0.25, 0.5, 1.0), split='test'),
)
FIELDS = {'dataset.name': 'rings', 'loss.epsilon': 0.25, 'seed': 0}
START = {
  'command': ['main.py', '--workdir=x'],
  'commit': 'c0ffee',
  'uncommitted_changes': True,
  'python': '3.11',
  'packages': {'jax': '0.10'},
  'devices': {'kind': 'cpu', 'count': 1, 'notes': []},
  'mesh': {'data': 1},
  'data': {'class_names': []},
}
ATTACK = {'step': 40, 'split': 'test', 'certificate': 'fast', 'seed': 0}
ATTACK |= {'lipschitz_lower_bound': 0.9871}


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  """A workdir with every file, of 120 examples in 10 classes. Do not write."""
  workdir = tmp_path_factory.mktemp('rings')
  rng, n = np.random.default_rng(0), 120
  labels = np.arange(n) % 10
  predictions = np.where(rng.random(n) < 0.9, labels, (labels + 1) % 10)
  radii = np.float32(rng.gamma(4, 0.15, n) * (rng.random(n) < 0.95))
  images = np.float32(rng.random((n, 8, 8, 1)))
  factors = {
    name: (1 + 1e-7 * (1 + rng.random(layers))).tolist()
    for name, layers in (('blocks/R', 8), ('blocks/M', 8), ('Q', 1))
  }
  result = evaluate.Evaluation(
    ids=np.arange(n),
    labels=labels,
    predictions=predictions,
    radii=radii,
    lipschitz_bound=float(np.prod(np.concatenate([*factors.values()]))),
    lipschitz_bounds=factors,
  )
  writer = report.MetricWriter(str(workdir))
  for step in range(1, 41):
    scalars = {'train/loss': 3 / step, 'train/clean': 100 - 60 / step}
    monitored = {'monitor/clean': 90.0} if step % 20 == 0 else {}
    writer.write(step, scalars | monitored)
  writer.close()
  files.write_json(f'{workdir}/config.json', FIELDS)
  files.write_json(f'{workdir}/run.json', [START])
  noise = rng.normal(size=images.shape)
  noise /= np.linalg.norm(noise, axis=(1, 2), keepdims=True)
  distances = 1.1 * (0.01 + np.float64(radii))
  points = images + distances[:, None, None, None] * noise
  in_box = target.Best(distances, points, (predictions + 1) % 2)
  # An attack that finds nothing for a tenth of the images.
  found = np.where(rng.random(n) < 0.1, np.inf, distances)
  ledger = types.SimpleNamespace(
    target=types.SimpleNamespace(
      images=images, predictions=predictions, radii=radii
    ),
    in_box=in_box,
    anywhere=in_box._replace(distances=found),
    broken=np.zeros(n, bool),
    certified_runs=12345,
    attacks={'pgd': {'runs': 10000, 'successes': 900}},
  )
  attack = run.summarise(ledger, labels, CONFIG.eval.epsilons)
  files.write_json(f'{workdir}/attack.json', ATTACK | attack)
  files.write_arrays(f'{workdir}/attack.npz', run.arrays(ledger, labels))
  source = views.ArraySource(images, labels)
  records.write_inputs(str(workdir), images[:8], source)
  report.write(str(workdir), CONFIG, 40, result, source)
  return workdir


@pytest.fixture
def copy(workdir, tmp_path):
  """A copy of `workdir` that may be written to."""
  return shutil.copytree(workdir, tmp_path / 'copy')
