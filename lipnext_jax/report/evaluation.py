"""Writes the files of an evaluation, and prints its table."""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import os
from typing import Any

import jax
import ml_collections
import numpy as np

from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import files
from lipnext_jax.certify import decimals
from lipnext_jax.data import views
from lipnext_jax.report import metrics
from lipnext_jax.report import page

_PER_GROUP = 8  # Images in each group of the page.


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
  columns = _columns(result, class_names, names)
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


def _columns(
  result: evaluate.Evaluation, class_names: Sequence[str], names: Sequence[str]
) -> dict[str, list[Any]]:
  """Returns the columns of `radii.csv`, with names if there are any."""
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
  return columns


def print_table(summary: Mapping[str, Any], title: str) -> None:
  """Prints the final numbers, rounded so that none exceeds what is proved."""
  n = summary['examples']
  lines = [
    title,
    f'  examples                {n:>8d}',
    f'  clean accuracy          {summary["clean"]:>8.2f} %',
  ]
  for epsilon in summary['epsilons']:  # The keys of 'cra' have six digits.
    hits = round(summary['cra'][f'{epsilon:.6g}'] * n / 100)
    certified = page.percent(hits, n).replace('\u00a0', ' ')
    name = decimals.epsilon_name(epsilon)
    lines.append(f'  CRA at ℓ2 ε = {name:<9s} {certified:>10s}')
  constant = page.constant(summary['lipschitz_bound'])
  lines.append(f'  Lipschitz bound Λ       {constant} (proved)')
  if 'logit_error' in summary:
    shown = decimals.up(summary['logit_error'], 2)
    lines.append(f'  rounding of logits E    {shown} (bounded, subtracted)')
  else:
    note = 'float32, an estimate subtracted (fast mode)'
    lines.append(f'  rounding of logits      {note}')
  print('\n'.join(lines), flush=True)


def choose(
  labels: np.ndarray, predictions: np.ndarray, radii: np.ndarray
) -> dict[str, np.ndarray]:
  """Chooses the examples of the page, at most `_PER_GROUP` in a group.

  Args:
    labels: [n] int.
    predictions: [n] int.
    radii: [n], ℓ2 in [0, 1] pixel units.

  Returns:
    The positions in each group. 'robust': correct, largest radii first.
    'fragile': correct with a radius above 0, smallest radii first. 'wrong':
    misclassified, largest radii first. The groups are disjoint.

  >>> groups = choose(np.zeros(3), np.array([0, 0, 1]), np.array([0.1, 2, 1]))
  >>> {name: chosen.tolist() for name, chosen in groups.items()}
  {'robust': [1], 'fragile': [0], 'wrong': [2]}
  """
  correct = labels == predictions
  order = np.argsort(radii, kind='stable')
  certified = order[correct[order] & (radii[order] > 0)]
  half = (len(certified) + 1) // 2
  return {
    'robust': certified[len(certified) - half :][::-1][:_PER_GROUP],
    'fragile': certified[: len(certified) - half][:_PER_GROUP],
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
