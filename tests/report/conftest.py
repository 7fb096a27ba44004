"""Makes a workdir like that of a run in milliseconds."""

import json
import shutil
import types

import numpy as np
import pytest

from lipnext_jax import evaluate
from lipnext_jax import report
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
ATTACK = {
  'step': 40,
  'split': 'test',
  'certificate': 'fast',
  'seed': 0,
  'examples': 120,
  'runs': 12345,
  'broken': 0,
  'broken_ids': [],
  'epsilons': {'0.25': {'cra': 200 / 3, 'robust': 68.5, 'gap': 11 / 6}},
  'attacks': {'pgd': {'runs': 10000, 'successes': 900}},
  'lipschitz_lower_bound': 0.9871,
}


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
  (workdir / 'config.json').write_text(json.dumps(FIELDS))
  (workdir / 'run.json').write_text(json.dumps([START]))
  # An attack that finds nothing for a tenth of the images.
  shown = np.flatnonzero(radii > 0)[:4]
  noise = rng.normal(size=images[shown].shape)
  noise /= np.linalg.norm(noise, axis=(1, 2), keepdims=True)
  distances = 1.1 * (0.01 + radii)
  np.savez(
    workdir / 'attack.npz',
    id=result.ids,
    label=labels,
    prediction=predictions,
    radius=radii,
    distance=np.where(rng.random(n) < 0.1, np.inf, distances),
    distance_in_box=distances,
    shown_id=shown,
    original=images[shown],
    adversarial=images[shown] + distances[shown, None, None, None] * noise,
    adversarial_prediction=(predictions[shown] + 1) % 2,
  )
  (workdir / 'attack.json').write_text(json.dumps(ATTACK))
  source = views.ArraySource(images, labels)
  records.write_inputs(str(workdir), images[:8], source)
  report.write(str(workdir), CONFIG, 40, result, source)
  return workdir


@pytest.fixture
def copy(workdir, tmp_path):
  """A copy of `workdir` that may be written to."""
  return shutil.copytree(workdir, tmp_path / 'copy')
