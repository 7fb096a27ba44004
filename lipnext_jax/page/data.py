"""What a workdir holds, read and checked: all that the page is made of."""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
from importlib import resources
import json
import os
from typing import Any
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from lipnext_jax import errors
from lipnext_jax import files

Arrays = Mapping[str, np.ndarray]

_UNREADABLE = (
  KeyError,
  EOFError,
  OSError,
  TypeError,
  ValueError,
  zipfile.BadZipFile,
  zlib.error,
)
_EVALUATE = 'evaluate the run first (python -m lipnext_jax.main … --mode=eval)'
_GALLERY = ('group', 'id', 'label', 'prediction', 'radius', 'image')
_ATTACK = ('id', 'label', 'prediction', 'radius', 'distance')
_SHOWN = ('shown_id', 'original', 'adversarial', 'adversarial_prediction')


class Run(NamedTuple):
  """One evaluated run. Arrays have one entry per example of the split."""

  name: str  # The workdir's last part.
  evaluation: dict[str, Any]  # eval.json.
  ids: np.ndarray  # Shape (n,).
  labels: np.ndarray  # Shape (n,).
  predictions: np.ndarray  # Shape (n,).
  radii: np.ndarray  # Shape (n,): ℓ2 in [0, 1] pixel units.
  metrics: dict[str, tuple[np.ndarray, np.ndarray]]  # Name → steps, values.
  config: dict[str, Any]  # config.json: dotted field → value; {}: none.
  starts: list[dict[str, Any]]  # run.json.
  gallery: Arrays | None  # gallery.npz, if it is of this evaluation.
  attack: dict[str, Any] | None  # attack.json, if it is of this evaluation.
  attacked: Arrays | None  # attack.npz, with it.
  notes: dict[str, str]  # File → why it is not shown.
  class_names: Sequence[str] = ()  # Of a dataset whose classes have names.

  @property
  def correct(self) -> np.ndarray:
    """Shape (n,) bool: classified as labelled."""
    return self.labels == self.predictions

  def name_of(self, c: int) -> str:
    """A class by its name, or as 'class 3' where it has none."""
    if 0 <= c < len(self.class_names):
      return self.class_names[c]
    return f'class {c}'

  @property
  def epsilon(self) -> float:
    """The radius of the headline: the one trained for, if it was reported."""
    reported = [float(key) for key in self.evaluation['cra']] or [0.0]
    wanted = self.config.get('loss.epsilon')
    if not isinstance(wanted, int | float):
      wanted = reported[0]
    return min(reported, key=lambda epsilon: abs(epsilon - wanted))


def read_run(workdir: str) -> Run:
  """Reads a workdir.

  Raises:
    UserError: `eval.json` or `radii.csv` is missing, unreadable, or they are
      of different evaluations. Anything else may be missing: `notes` says so.
  """
  evaluation = _read_evaluation(os.path.join(workdir, 'eval.json'))
  table = _read_radii(os.path.join(workdir, 'radii.csv'))
  rows, examples = len(table['id']), evaluation['examples']
  if rows != examples:
    raise errors.UserError(
      f'{workdir}: radii.csv has {rows} examples, eval.json {examples}: they '
      f'are of different evaluations; {_EVALUATE}.'
    )
  notes: dict[str, str] = {}
  config = _optional_json(workdir, 'config.json', dict, notes)
  starts = _optional_json(workdir, 'run.json', list, notes)
  attack, attacked = _read_attack(workdir, evaluation, table, notes)
  return Run(
    name=os.path.basename(os.path.abspath(workdir)),
    evaluation=evaluation,
    ids=table['id'],
    labels=table['label'],
    predictions=table['prediction'],
    radii=table['radius'],
    metrics=_read_metrics(os.path.join(workdir, 'metrics.jsonl'), notes),
    config=config or {},
    starts=[start for start in starts or [] if isinstance(start, dict)],
    gallery=_read_gallery(workdir, table, notes),
    attack=attack,
    attacked=attacked,
    notes=notes,
    class_names=_class_names((config or {}).get('dataset.name')),
  )


def _class_names(dataset: object) -> list[str]:
  if dataset not in ('cifar10', 'cifar100'):
    return []
  # Read here: the code that prepares these sets needs what a report does not.
  lists = resources.files('lipnext_jax.data') / 'class_lists'
  return (lists / f'{dataset}.txt').read_text(encoding='utf-8').split()


def _read_evaluation(path: str) -> dict[str, Any]:
  try:
    value = files.read_json(path)
    return {
      **value,
      'step': int(value['step']),
      'examples': int(value['examples']),
      'clean': float(value['clean']),
      'cra': {
        f'{float(key):.6g}': float(cra) for key, cra in value['cra'].items()
      },
      'lipschitz_bound': float(value['lipschitz_bound']),
    }
  except FileNotFoundError:
    raise errors.UserError(f'{path} is missing; {_EVALUATE}.') from None
  except (*_UNREADABLE, AttributeError) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error!r}); {_EVALUATE}.'
    ) from None


def _read_radii(path: str) -> dict[str, np.ndarray]:
  columns = {'id': int, 'label': int, 'prediction': int, 'radius': float}
  try:
    with open(path, newline='', encoding='utf-8') as file:
      rows = list(csv.DictReader(file))
    return {
      name: np.array([convert(row[name]) for row in rows], dtype=convert)
      for name, convert in columns.items()
    }
  except FileNotFoundError:
    raise errors.UserError(f'{path} is missing; {_EVALUATE}.') from None
  except _UNREADABLE as error:
    raise errors.UserError(
      f'{path} cannot be read ({error!r}); {_EVALUATE}.'
    ) from None


def _optional_json(
  workdir: str, name: str, kind: type, notes: dict[str, str]
) -> Any:
  try:
    value = files.read_json(os.path.join(workdir, name))
  except FileNotFoundError:
    notes[name] = f'{name} is not in the workdir.'
    return None
  except _UNREADABLE as error:
    notes[name] = f'{name} cannot be read ({error}).'
    return None
  if isinstance(value, kind):
    return value
  notes[name] = f'{name} does not hold what it should.'
  return None


def _read_metrics(
  path: str, notes: dict[str, str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  points: dict[str, list[tuple[int, float]]] = {}
  try:
    with open(path, encoding='utf-8') as file:
      for line in file:
        try:
          scalars = json.loads(line)
          step = int(scalars.pop('step'))
        except (ValueError, KeyError, TypeError, AttributeError):
          break  # Cut short while it was written.
        for name, value in scalars.items():
          if isinstance(value, int | float):
            points.setdefault(name, []).append((step, float(value)))
  except OSError:
    notes['metrics.jsonl'] = 'metrics.jsonl is not in the workdir.'
  return {
    name: (np.array([s for s, _ in pairs]), np.array([v for _, v in pairs]))
    for name, pairs in points.items()
  }


def _read_arrays(path: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
  # Pickles are refused: they run code.
  with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
    return {name: arrays[name] for name in names}


def _read_gallery(
  workdir: str, table: Arrays, notes: dict[str, str]
) -> Arrays | None:
  name = 'gallery.npz'
  try:
    gallery = _read_arrays(os.path.join(workdir, name), _GALLERY)
    if gallery['image'].ndim != 4:
      raise ValueError(f'image has shape {gallery["image"].shape}')
    rows = _rows_of(gallery['id'], table)
    # radii.csv holds every digit, so that equal means equal.
    same = rows is not None and all(
      np.array_equal(
        gallery[column].astype(float),
        table[column][rows].astype(float),
        equal_nan=True,
      )
      for column in ('label', 'prediction', 'radius')
    )
  except FileNotFoundError:
    notes[name] = f'{name} is not in the workdir: {_EVALUATE}.'
  except _UNREADABLE as error:
    notes[name] = f'{name} cannot be read ({error}).'
  else:
    if same:
      return gallery
    notes[name] = f'{name} is of another evaluation: evaluate again.'
  return None


def _rows_of(ids: np.ndarray, table: Arrays) -> np.ndarray | None:
  """Where `ids` are in the table, or None if some are not."""
  row_of = {int(i): row for row, i in enumerate(table['id'])}
  rows = [row_of.get(int(i), -1) for i in ids]
  return None if -1 in rows else np.array(rows, dtype=int)


def _read_attack(
  workdir: str, evaluation: dict[str, Any], table: Arrays, notes: dict[str, str]
) -> tuple[dict[str, Any] | None, Arrays | None]:
  again = f'run python -m lipnext_jax.attacks --workdir={workdir}'
  summary = _optional_json(workdir, 'attack.json', dict, notes)
  if summary is None:
    notes['attack.json'] += (
      f' To attack the certificates of this run: {again}, then write this '
      'report again.'
    )
    return None, None
  for field in ('step', 'split'):
    theirs, own = summary.get(field), evaluation.get(field)
    if theirs != own and not (field == 'split' and None in (theirs, own)):
      notes['attack.json'] = (
        f'attack.json is stale: it is of {field} {theirs}, the evaluation of '
        f'{field} {own}. It is not shown; {again}.'
      )
      return None, None
  try:
    for field in ('runs', 'broken', 'examples'):
      summary[field] = int(summary[field])
  except _UNREADABLE as error:
    notes['attack.json'] = f'attack.json lacks a number ({error!r}); {again}.'
    return None, None
  try:
    path = os.path.join(workdir, 'attack.npz')
    attacked = _read_arrays(path, (*_ATTACK, *_SHOWN))
    rows = _rows_of(attacked['id'], table)
    if rows is None or not np.array_equal(
      attacked['label'], table['label'][rows]
    ):
      raise ValueError('its examples are not those of radii.csv')
    if _rows_of(attacked['shown_id'], attacked) is None:
      raise ValueError('it shows an example that was not attacked')
    if attacked['original'].shape != attacked['adversarial'].shape:
      raise ValueError('originals and adversarials differ in shape')
  except _UNREADABLE as error:
    notes['attack.npz'] = f'attack.npz cannot be shown ({error}); {again}.'
    return summary, None
  return summary, attacked
