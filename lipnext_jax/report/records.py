"""Files that say what ran and what came out of it, and the final table."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import files
from lipnext_jax import parallel
from lipnext_jax.certify import decimals
from lipnext_jax.data import sources
from lipnext_jax.data import views
from lipnext_jax.models import interface
from lipnext_jax.models import lipnext
from lipnext_jax.report import metrics
from lipnext_jax.report import page

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'ml-collections',
)  # fmt: skip
_INPUTS = 4  # Images of each split in `inputs.npz`.
_PER_GROUP = 8  # Images in each group of `gallery.npz`.


def write_records(
  workdir: str, mesh: jax.sharding.Mesh, state: Any, dataset: sources.Dataset
) -> None:
  """Writes `parameters.txt` and `run.json`, which say what ran.

  `parameters.txt` lists path, shape, dtype, sharding and bytes per device of
  every array of the train state. `run.json` has an entry per start of the run,
  with versions, devices, the commit and facts about the data.
  """
  if jax.process_index() != 0:
    return
  files.write_text(
    os.path.join(workdir, 'parameters.txt'),
    f'{parallel.layout_table(state)}\n'
    f'parameters stored: {interface.parameter_count(state.params):,}\n'
    'as the paper counts, R and M with R whole: '
    f'{lipnext.paper_parameter_count(state.params):,}\n',
  )
  path = os.path.join(workdir, 'run.json')
  starts: list[dict[str, Any]] = []
  with contextlib.suppress(FileNotFoundError, ValueError):
    starts = files.read_json(path)
  data = {
    'image_shape': dataset.image_shape,
    'resize': dataset.resize,
    'num_classes': dataset.num_classes,
    'class_names': dataset.class_names,
    'train_examples': len(dataset.train),
    'train_files': dataset.train_files,
    'notes': dataset.notes,
  }
  files.write_json(path, [*starts, {**describe_run(mesh), 'data': data}])


def describe_run(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns versions, devices, and the commit of this code."""
  git = [
    *('git', '-C', os.path.dirname(os.path.abspath(__file__)), 'describe'),
    *('--always', '--dirty', '--abbrev=40', '--exclude=*'),
  ]
  commit = ''
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    commit = subprocess.check_output(
      git, stderr=subprocess.DEVNULL, text=True, timeout=10
    ).strip()
  devices = mesh.devices.flatten()
  return {
    'command': sys.argv,
    'commit': commit.removesuffix('-dirty') or 'not a git checkout',
    'uncommitted_changes': commit.endswith('-dirty'),
    'python': platform.python_version(),
    'packages': {name: importlib.metadata.version(name) for name in _PACKAGES},
    'devices': {
      'kind': devices[0].device_kind,
      'platform': devices[0].platform,
      'count': len(devices),
      'processes': jax.process_count(),
    },
    'mesh': dict(mesh.shape),
  }


def write_inputs(
  workdir: str, trained: np.ndarray, evaluated: views.Source
) -> None:
  """Writes `inputs.npz`, with images as the network sees them, for the page.

  Args:
    workdir: workdir of the run.
    trained: images [b, H, W, ch] of a training batch.
    evaluated: split of the final evaluation.
  """
  if jax.process_index() != 0:
    return
  step = -(-len(evaluated) // _INPUTS)  # A split may be sorted by class.
  images = [evaluated[i]['image'] for i in range(0, len(evaluated), step)]
  files.write_arrays(
    os.path.join(workdir, 'inputs.npz'),
    {'training': trained[:_INPUTS], 'evaluation': np.stack(images)},
  )


def read_data_facts(workdir: str) -> dict[str, Any]:
  """Reads the facts about the data that the last start of a run recorded.

  Returns:
    'image_shape' [H, W, ch], 'num_classes', 'train_examples', 'class_names', ()
    if they are not known, 'resize', and 'train_files', '' if not known.

  Raises:
    ConfigError: run.json is missing or does not hold these facts.
  """
  try:
    facts = files.read_json(os.path.join(workdir, 'run.json'))[-1]['data']
    return {
      'image_shape': tuple(facts['image_shape']),
      'num_classes': facts['num_classes'],
      'train_examples': facts['train_examples'],
      'class_names': tuple(
        errors.printable(name) for name in facts.get('class_names', ())
      ),
      'resize': facts['resize'],
      'train_files': facts.get('train_files', ''),
    }
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has no run.json that describes its data ({type(error).__name__})',
      'name the directory of a training run',
    ) from None


def check_data(workdir: str, data_dir: str, dataset: sources.Dataset) -> None:
  """Checks that the run in `workdir`, if any, was trained on these data.

  A class or an image more or less changes labels, and the split of a folder.

  Raises:
    ConfigError: classes or training images are others.
  """
  try:
    stored = read_data_facts(workdir)
  except errors.ConfigError:  # There is no run, or its record is damaged.
    return
  classes, examples = stored['num_classes'], stored['train_examples']
  names = zip(stored['class_names'], dataset.class_names, strict=False)
  others = [c for c, (before, now) in enumerate(names) if before != now]
  if dataset.num_classes != classes:
    change = f'{dataset.num_classes} classes, not {classes}'
  elif others:
    c = others[0]
    before, now = stored['class_names'][c], dataset.class_names[c]
    change = f'{now!r} as class {c}, not {before!r}'
  elif len(dataset.train) != examples:
    change = f'{len(dataset.train)} training images, not {examples}'
  elif stored['train_files'] not in ('', dataset.train_files):
    change = 'training images of other names'
  else:
    return
  raise errors.ConfigError(
    'dataset.data_dir',
    data_dir,
    f'has {change}, as when the run in {workdir} was made',
    'restore the data, or choose another --workdir',
  )


def write(
  workdir: str,
  config: ml_collections.ConfigDict,
  step: int,
  result: evaluate.Evaluation,
  source: views.Source,
  class_names: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes `eval.json`, `radii.csv` and the page, and prints the final table.

  The first process writes. The numbers come first: an error of the page or its
  images becomes a line on stderr.

  Args:
    workdir: workdir of the run.
    config: config of the run.
    step: number of updates of the evaluated weights.
    result: result of the evaluation.
    source: examples of the evaluated split, for their images and file names.
    class_names: names of the classes by label; empty if not known.

  Returns:
    The contents of `eval.json`.
  """
  split = config.eval.split
  summary = {
    'step': step,
    'split': split,
    **result.summary(config.eval.epsilons),
    'epsilons': list(config.eval.epsilons),
  }
  if jax.process_index() != 0:
    return summary
  with metrics.stopwatch('reading the names of the examples', patience=2):
    names = source.names()
  columns = {
    'id': result.ids.tolist(),
    'label': result.labels.tolist(),
    'prediction': result.predictions.tolist(),
    'radius': result.radii.tolist(),  # With all digits of float32.
  }
  if class_names:
    for column in ('label', 'prediction'):
      columns[f'{column}_name'] = [class_names[c] for c in columns[column]]
  if names:
    columns['file'] = [errors.printable(names[i]) for i in columns['id']]
  table = io.StringIO(newline='')
  writer = csv.writer(table)
  writer.writerow(columns)
  writer.writerows(zip(*columns.values(), strict=True))
  files.write_text(os.path.join(workdir, 'radii.csv'), table.getvalue())
  files.write_json(os.path.join(workdir, 'eval.json'), summary)
  print_table(summary, f'{config.dataset.name}, {split} split:')
  try:
    _write_gallery(workdir, result, source)
    metrics.log(f'the report is {page.write_page(workdir)}')
  except Exception as error:
    metrics.log(f'no report.html: {error!r}')
  return summary


def print_table(summary: Mapping[str, Any], title: str) -> None:
  """Prints the final numbers, rounded so that none exceeds what is proved."""
  n = summary['examples']
  print(title)
  print(f'  examples                {n:>8d}')
  print(f'  clean accuracy          {summary["clean"]:>8.2f} %')
  for epsilon in summary['epsilons']:  # The keys of 'cra' have six digits.
    hits = round(summary['cra'][f'{epsilon:.6g}'] * n / 100)
    certified = page.percent(hits, n).replace('\u00a0', ' ')
    name = decimals.epsilon_name(epsilon)
    print(f'  CRA at ℓ2 ε = {name:<9s} {certified:>10s}')
  constant = page.constant(summary['lipschitz_bound'])
  print(f'  Lipschitz bound Λ       {constant} (proved)')
  rounding = '     float32, an estimate subtracted (fast mode)'
  if 'logit_error' in summary:
    shown = decimals.up(summary['logit_error'], 2)
    rounding = f'E    {shown} (bounded, subtracted)'
  print(f'  rounding of logits {rounding}', flush=True)


def choose(
  labels: np.ndarray, predictions: np.ndarray, radii: np.ndarray
) -> dict[str, np.ndarray]:
  """Chooses the positions in each of the disjoint groups of the gallery.

  'robust' are correct, with the largest radii first; 'fragile' are correct,
  with the smallest radii above 0 first; 'wrong' have the largest radii first.

  >>> groups = choose(np.zeros(3), np.array([0, 0, 1]), np.array([0.1, 2, 1]))
  >>> {name: chosen.tolist() for name, chosen in groups.items()}
  {'robust': [1], 'fragile': [0], 'wrong': [2]}
  """
  correct = labels == predictions
  order = np.argsort(radii, kind='stable')
  certified = order[correct[order] & (radii[order] > 0)]
  half = len(certified) // 2
  return {
    'robust': certified[half:][::-1][:_PER_GROUP],
    'fragile': certified[:half][:_PER_GROUP],
    'wrong': order[~correct[order]][::-1][:_PER_GROUP],
  }


def _write_gallery(
  workdir: str, result: evaluate.Evaluation, source: views.Source
) -> None:
  """Writes the images of the page to `gallery.npz`."""
  groups = choose(result.labels, result.predictions, result.radii)
  chosen = np.concatenate(list(groups.values()))
  images = [source[int(result.ids[i])]['image'] for i in chosen]
  files.write_arrays(
    os.path.join(workdir, 'gallery.npz'),
    {
      'group': np.repeat(list(groups), [len(g) for g in groups.values()]),
      'id': result.ids[chosen],
      'label': result.labels[chosen],
      'prediction': result.predictions[chosen],
      'radius': result.radii[chosen],
      'image': np.stack(images) if images else np.zeros((0, 1, 1, 1)),
    },
  )
