"""Reads and checks the files of a workdir from which the page is built."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import os
from typing import Any

import numpy as np

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.report import metrics as metrics_lib

Arrays = Mapping[str, np.ndarray]

EVALUATE = 'evaluate the run first (python -m lipnext_jax.main … --mode=eval)'
_COLUMNS = {'id': int, 'label': int, 'prediction': int, 'radius': float}
# What the page needs; files of earlier versions may lack some of it.
_ATTACK = (
  'step', 'split', 'certificate', 'seed', 'examples', 'runs', 'broken',
  'broken_ids', 'epsilons', 'attacks', 'lipschitz_lower_bound',
)  # fmt: skip
_INPUTS = ('training', 'evaluation')
_GALLERY = ('group', 'image')
_ATTACKED = (
  'prediction', 'radius', 'distance', 'distance_in_box', 'shown_id', 'original',
  'adversarial', 'adversarial_prediction',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of an evaluated run; missing ones are empty, with a note.

  Entries of `starts` may lack fields that earlier versions did not write.
  """

  workdir: str
  name: str  # Last part of the path.
  evaluation: dict[str, Any]  # eval.json.
  table: Arrays  # radii.csv: id, label, prediction, radius, perhaps file; [n].
  config: dict[str, Any]  # config.json: dotted field → value.
  starts: list[dict[str, Any]]  # run.json: the last entry is the newest.
  metrics: dict[str, tuple[np.ndarray, np.ndarray]]  # Name → steps, values.
  inputs: Arrays  # inputs.npz: images as training and evaluation see them.
  gallery: Arrays  # gallery.npz, if it belongs to this evaluation.
  attack: dict[str, Any]  # attack.json, if it belongs to this evaluation.
  attacked: Arrays  # attack.npz, if it belongs to this evaluation.
  notes: dict[str, str]  # File → reason why it is not shown.

  @property
  def certified(self) -> np.ndarray:
    """Radii [n]; 0 for wrong answers."""
    right = self.table['label'] == self.table['prediction']
    radii = self.table['radius']
    return np.where(right & (radii > 0), radii, 0.0)

  @property
  def epsilon(self) -> float:
    """The ε of the headline: the reported one closest to `loss.epsilon`."""
    reported = self.evaluation['epsilons']
    wanted = self.config.get('loss.epsilon', reported[0])
    return min(reported, key=lambda epsilon: abs(epsilon - wanted))

  @property
  def class_names(self) -> Sequence[str]:
    """Names of the classes by label; empty if the files do not have them."""
    return self.starts[-1].get('data', {}).get('class_names', ())

  def name_of(self, c: int) -> str:
    """Returns the name of a class, or 'class 3'."""
    names = self.class_names
    return names[c] if 0 <= c < len(names) else f'class {c}'

  def file_of(self, example: int) -> str:
    """Returns the name of an example's file or record, or ''."""
    return self.table['file'][example] if 'file' in self.table else ''


def read_run(workdir: str) -> Run:
  """Reads the files of an evaluated run.

  Raises:
    UserError: `eval.json` or `radii.csv` is missing or unreadable, or they
      belong to different evaluations. Other files may be missing.
  """
  notes: dict[str, str] = {}

  def read(name: str, reader: Callable[..., Any], *args: Any) -> Any:
    path = os.path.join(workdir, name)
    try:
      return reader(path, *args)
    except FileNotFoundError:
      problem = 'is missing'
    except Exception as error:  # The file may hold anything.
      problem = f'cannot be read ({type(error).__name__}: {error})'
    if name in ('eval.json', 'radii.csv'):
      raise errors.UserError(f'{path} {problem}; {EVALUATE}.')
    notes[name] = f'{name} {problem}'
    return {}

  evaluation = read('eval.json', _read_evaluation)
  table = read('radii.csv', _read_radii)
  rows, examples = len(table['id']), evaluation['examples']
  if rows != examples:
    raise errors.UserError(
      f'{workdir}: radii.csv has {rows} examples, eval.json {examples}: they '
      f'are of different evaluations; {EVALUATE}.'
    )
  attacked = {}
  if attack := read('attack.json', _read_attack, evaluation):
    # What was attacked may have other certificates, on the first examples.
    own = {'label': table['label']}
    attacked = read('attack.npz', _read_arrays, _ATTACKED, own)
  own = {name: table[name] for name in ('label', 'prediction', 'radius')}
  return Run(
    workdir=workdir,
    name=os.path.basename(os.path.abspath(workdir)),
    evaluation=evaluation,
    table=table,
    config=read('config.json', files.read_json),
    starts=read('run.json', files.read_json) or [{}],
    metrics=read('metrics.jsonl', _read_metrics),
    inputs=read('inputs.npz', _read_arrays, _INPUTS),
    gallery=read('gallery.npz', _read_arrays, _GALLERY, own),
    attack=attack,
    attacked=attacked,
    notes=notes,
  )


def _read_evaluation(path: str) -> dict[str, Any]:
  evaluation = files.read_json(path)
  bounds = evaluation['lipschitz_bounds'].items()
  factors = {name: np.array(layers) for name, layers in bounds if layers}
  return evaluation | {'lipschitz_bounds': factors}


def _read_attack(path: str, evaluation: dict[str, Any]) -> dict[str, Any]:
  attack = files.read_json(path)
  if missing := [name for name in _ATTACK if name not in attack]:
    raise ValueError(f'it lacks {", ".join(missing)}')
  for field in ('step', 'split'):
    if attack[field] != evaluation[field]:
      raise ValueError(
        f'it is stale, of {field} {attack[field]}; the evaluation is of '
        f'{field} {evaluation[field]}'
      )
  return attack


def _read_radii(path: str) -> Arrays:
  with files.open_text(path, newline='') as file:
    rows = list(csv.DictReader(file))
  if not rows:
    raise ValueError('it has no examples')
  columns = _COLUMNS | ({'file': str} if 'file' in rows[0] else {})
  return {
    name: np.array([convert(row[name]) for row in rows], dtype=convert)
    for name, convert in columns.items()
  }


def _read_metrics(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  points = collections.defaultdict[str, list](list)
  for _, scalars in metrics_lib.read_metrics(path):
    step = scalars.pop('step')
    for name, value in scalars.items():
      points[name].append((step, value))
  columns = {name: zip(*pairs, strict=True) for name, pairs in points.items()}
  return {
    name: (np.array(steps), np.array(values, float))
    for name, (steps, values) in columns.items()
  }


def _read_arrays(
  path: str, names: Sequence[str], own: Arrays | None = None
) -> Arrays:
  """Reads arrays; 'id' and those of `own` must be of the same evaluation."""
  own = own or {}
  also = ('id', *own) if own else ()
  with files.open_binary(path) as file, np.load(file) as stored:
    arrays = {name: stored[name] for name in (*names, *also)}
  for name, column in own.items():
    # Numbers in radii.csv have all digits, so they must be equal exactly.
    if not np.array_equal(column[arrays['id']], arrays[name], equal_nan=True):
      raise ValueError('it belongs to another evaluation')
  return arrays
