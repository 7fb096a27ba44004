"""Records of a run: versions, machine, arrays and data."""

from collections.abc import Sequence
import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.data import sources
from lipnext_jax.data import views
from lipnext_jax.models import interface
from lipnext_jax.models import lipnext
from lipnext_jax.parallel import mesh as mesh_lib

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'ml-collections',
)  # fmt: skip
_INPUTS = 4  # Images of each split in `inputs.npz`.


def write_records(
  workdir: str,
  mesh: jax.sharding.Mesh,
  state: Any,
  dataset: sources.Dataset,
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
    f'{mesh_lib.table(state)}\n'
    f'parameters stored: {interface.parameter_count(state.params):,}\n'
    'as the paper counts, R and M with R whole: '
    f'{lipnext.paper_parameter_count(state.params):,}\n',
  )
  path = os.path.join(workdir, 'run.json')
  starts = []
  if files.exists(path):
    with contextlib.suppress(ValueError):  # Damaged: the entries are lost.
      starts = files.read_json(path)
    starts = starts if isinstance(starts, list) else []
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
    h, w, ch = facts['image_shape']
    numbers = h, w, ch, facts['num_classes'], facts['train_examples']
    if any(type(n) is not int or not 0 < n < 2**31 for n in numbers):
      raise ValueError('a number is not a count')
    names, resize = facts.get('class_names') or (), facts['resize']
    if type(resize) is not int:
      raise ValueError('resize is not a number')
    if names and len(names) != facts['num_classes']:
      raise ValueError('a class without a name')
  except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has no run.json that describes its data ({type(error).__name__})',
      'name the directory of a training run',
    ) from None
  return {
    'image_shape': (h, w, ch),
    'num_classes': facts['num_classes'],
    'train_examples': facts['train_examples'],
    'class_names': tuple(errors.printable(str(name)) for name in names),
    'resize': resize,
    'train_files': str(facts.get('train_files', '')),
  }


def check_data(workdir: str, data_dir: str, dataset: sources.Dataset) -> None:
  """Checks that a run, if there is one, was trained on these data.

  A class or an image more or less changes labels, and the split of a folder.

  Args:
    workdir: workdir of a run, or a new one.
    data_dir: `config.dataset.data_dir`.
    dataset: the data, as they are now.

  Raises:
    ConfigError: classes or training images are others.
  """
  try:
    stored = read_data_facts(workdir)
  except errors.ConfigError:  # There is no run, or its record is damaged.
    return
  changes = []
  if stored['num_classes'] != dataset.num_classes:
    changes.append(
      f'{dataset.num_classes} classes, not {stored["num_classes"]}'
    )
  names = zip(stored['class_names'], dataset.class_names, strict=False)
  for label, (before, now) in enumerate(names):
    if before != now:
      changes.append(f'{now!r} as class {label}, not {before!r}')
  if stored['train_examples'] != len(dataset.train):
    changes.append(
      f'{len(dataset.train)} training images, not {stored["train_examples"]}'
    )
  elif stored['train_files'] not in ('', dataset.train_files):
    changes.append('training images of other names')
  if changes:
    raise errors.ConfigError(
      'dataset.data_dir',
      data_dir,
      f'has {changes[0]}, as when the run in {workdir} was made',
      'restore the data, or choose another --workdir',
    )


def describe_run(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns versions, devices, and the commit of this code."""
  git = ['git', '-C', os.path.dirname(os.path.abspath(__file__))]
  commit = _output([*git, 'rev-parse', 'HEAD'])
  dirty = _output([*git, 'status', '--porcelain', '--untracked-files=no'])
  devices = mesh.devices.flatten()
  return {
    'command': sys.argv,
    'commit': commit or 'not a git checkout',
    'uncommitted_changes': bool(dirty),
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


def _output(command: Sequence[str]) -> str:
  """Returns the output of a command, or '' if it fails."""
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''
