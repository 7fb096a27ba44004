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

_EVALUATE = 'evaluate the run first (python -m lipnext_jax.main … --mode=eval)'
_COLUMNS = {'id': int, 'label': int, 'prediction': int, 'radius': float}
# Forms of the JSON values that the page reads: a type; (low, high), a number
# between them; [form], a list; {name: form}, an object with these fields, or
# {str: form}, with any names.
_NUMBER = int | float
_SHARE = (0, 100)  # In per cent.
_RADIUS = (0, 1e9)
_EVALUATION = {
  'step': int, 'split': str, 'certificate': str, 'examples': int,
  'clean': _SHARE, 'epsilons': [_RADIUS], 'lipschitz_bound': _NUMBER,
  'lipschitz_bounds': {str: [_NUMBER]},
}  # fmt: skip
_ATTACK = {
  'step': int, 'split': str, 'certificate': str, 'seed': int, 'examples': int,
  'runs': int, 'broken': int, 'broken_ids': [int],
  'epsilons': {str: {'cra': _SHARE, 'robust': _SHARE, 'gap': _NUMBER}},
  'attacks': {str: {'runs': int, 'successes': int}},
  'lipschitz_lower_bound': _NUMBER,
}  # fmt: skip
_START = {
  'command': list, 'commit': str, 'uncommitted_changes': bool, 'python': str,
  'packages': dict, 'devices': dict, 'mesh': dict,
  'data': {'class_names': [str]},
}  # fmt: skip
# Kinds of dtypes, and a letter for the size of each dimension. Equal letters
# of a file are equal sizes.
_WHOLE, _REAL = ('iu', 'n'), ('f', 'n')
_ROWS = {'id': _WHOLE, 'label': _WHOLE, 'prediction': _WHOLE, 'radius': _REAL}
_INPUTS = {'training': ('fu', 'nhwc'), 'evaluation': ('fu', 'NHWC')}
_GALLERY = {**_ROWS, 'group': ('U', 'n'), 'image': ('fu', 'nhwc')}
_ATTACKED = {
  **_ROWS, 'distance': _REAL, 'distance_in_box': _REAL, 'shown_id': ('iu', 'm'),
  'original': ('f', 'mhwc'), 'adversarial': ('f', 'mhwc'),
  'adversarial_prediction': ('iu', 'm'),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of an evaluated run; missing ones are empty, with a note."""

  workdir: str
  name: str  # Last part of the path.
  evaluation: dict[str, Any]  # eval.json.
  table: Arrays  # radii.csv: id, label, prediction, radius, perhaps file; [n].
  config: dict[str, Any]  # config.json: dotted field → value.
  starts: list[dict[str, Any]]  # run.json.
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
    return self.starts[-1]['data']['class_names'] if self.starts else ()

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
      raise errors.UserError(f'{path} {problem}; {_EVALUATE}.')
    notes[name] = f'{name} {problem}'
    return {}

  evaluation = read('eval.json', _read_evaluation)
  table = read('radii.csv', _read_radii)
  rows, examples = len(table['id']), evaluation['examples']
  if rows != examples:
    raise errors.UserError(
      f'{workdir}: radii.csv has {rows} examples, eval.json {examples}: they '
      f'are of different evaluations; {_EVALUATE}.'
    )
  same = {name: table[name] for name in ('label', 'prediction', 'radius')}
  attacked = {}
  if attack := read('attack.json', _read_attack, evaluation):
    attacked = read('attack.npz', _read_attacked, {'label': table['label']})
  return Run(
    workdir=workdir,
    name=os.path.basename(os.path.abspath(workdir)),
    evaluation=evaluation,
    table=table,
    config=read('config.json', _read_record, {'loss.epsilon': _NUMBER}),
    starts=read('run.json', _read_starts) or [],
    metrics=read('metrics.jsonl', _read_metrics),
    inputs=read('inputs.npz', _read_arrays, _INPUTS),
    gallery=read('gallery.npz', _read_arrays, _GALLERY, same),
    attack=attack,
    attacked=attacked,
    notes=notes,
  )


def _fits(value: Any, form: Any) -> bool:
  """Returns whether a JSON value has one of the forms declared above."""
  if isinstance(form, tuple):
    return isinstance(value, _NUMBER) and form[0] <= value <= form[1]
  if isinstance(form, list):
    return isinstance(value, list) and all(_fits(v, form[0]) for v in value)
  if isinstance(form, dict):
    if not isinstance(value, dict):
      return False
    forms = dict.fromkeys(value, form[str]) if str in form else form
    return all(_fits(value.get(name), forms[name]) for name in forms)
  # No float holds an integer of hundreds of digits.
  huge = isinstance(value, int) and abs(value) >= 2**63
  return isinstance(value, form) and not huge


def _check(record: dict[str, Any], forms: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a record; raises if a field is missing or has another form."""
  bad = [name for name in forms if not _fits(record.get(name), forms[name])]
  if bad:
    raise ValueError(f'it lacks a valid {", ".join(sorted(bad))}')
  return record


def _read_record(path: str, forms: Mapping[str, Any]) -> dict[str, Any]:
  return _check(files.read_json(path), forms)


def _read_starts(path: str) -> list[dict[str, Any]]:
  starts = [*map(dict, files.read_json(path))]
  for start in starts[-1:]:  # The page shows the last one.
    _check(start, _START)
  return starts


def _read_evaluation(path: str) -> dict[str, Any]:
  evaluation = _read_record(path, _EVALUATION)
  _check({'logit_error': 0.0} | evaluation, {'logit_error': _NUMBER})
  bounds = evaluation['lipschitz_bounds'].items()
  factors = {name: np.array(layers, float) for name, layers in bounds if layers}
  if not factors or not evaluation['epsilons']:
    raise ValueError('it has no epsilons or no lipschitz_bounds')
  return evaluation | {'lipschitz_bounds': factors}


def _read_attack(path: str, evaluation: dict[str, Any]) -> dict[str, Any]:
  attack = _read_record(path, _ATTACK)
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
  points = collections.defaultdict(list)
  for _, scalars in metrics_lib.read_metrics(path):
    step = scalars.pop('step')
    for name, value in scalars.items():
      if isinstance(value, int | float):
        points[name].append((step, float(value)))
  return {
    name: (
      np.array([s for s, _ in pairs], int),
      np.array([v for _, v in pairs]),
    )
    for name, pairs in points.items()
  }


def _read_arrays(
  path: str, forms: Mapping[str, tuple[str, str]], same: Arrays | None = None
) -> Arrays:
  """Reads arrays that must equal columns of radii.csv at their ids."""
  with files.open_binary(path) as file, np.load(file) as stored:
    arrays = {name: stored[name] for name in forms}
  sizes: dict[str, int] = {}
  for name, (kinds, letters) in forms.items():
    dtype, shape = arrays[name].dtype, arrays[name].shape
    known = tuple(map(sizes.setdefault, letters, shape))
    if dtype.kind not in kinds or len(shape) != len(letters) or known != shape:
      raise ValueError(f'{name} is of shape {shape} and dtype {dtype}')
    if 0 in shape[1:]:
      raise ValueError(f'{name} has images without pixels')
  for name, column in (same or {}).items():
    # Numbers in radii.csv have all digits, so they must be equal exactly.
    if not np.array_equal(column[arrays['id']], arrays[name], equal_nan=True):
      raise ValueError('it belongs to another evaluation')
  return arrays


def _read_attacked(path: str, same: Arrays) -> Arrays:
  """Reads the arrays of an attack on the first examples of radii.csv."""
  arrays = _read_arrays(path, _ATTACKED, same)
  shown = arrays['shown_id']
  if not np.array_equal(arrays['id'][shown], shown):
    raise ValueError('it shows images that it did not attack')
  return arrays
