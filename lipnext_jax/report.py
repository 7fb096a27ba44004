"""What a run leaves behind: records, metrics, progress, the final table."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from typing import Any
from typing import Self
from typing import TextIO

import jax
from tensorboardX import event_file_writer
from tensorboardX import summary as board_summary
from tensorboardX.proto import event_pb2
import tqdm

from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import files
from lipnext_jax.certify import decimals
from lipnext_jax.data import sources
from lipnext_jax.models import interface
from lipnext_jax.models import lipnext
from lipnext_jax.parallel import sharding as sharding_lib

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'ml-collections',
)  # fmt: skip
_FLUSH_SECONDS = 30  # Between those of TensorBoard's files, to the disk.


def say(message: str) -> None:
  """A line on stderr, from the first process only."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stopwatch(what: str) -> Iterator[None]:
  """Says how long the block took."""
  start = time.perf_counter()
  yield
  say(f'{what} in {time.perf_counter() - start:.1f} s')


def write_records(
  workdir: str,
  mesh: jax.sharding.Mesh,
  state: Any,
  shardings: Any,
  dataset: sources.Dataset,
) -> None:
  """What is needed, beside the config, to say later what ran.

  `parameters.txt` (path, shape, dtype, spec, bytes per device of the whole
  train state) and `run.json` (versions, devices, commit, the data's shape; one
  entry per start, so that a resumed run keeps them all).
  """
  if jax.process_index() != 0:
    return
  files.write_text(
    os.path.join(workdir, 'parameters.txt'),
    f'{sharding_lib.table(state, shardings)}\n'
    f'parameters stored: {interface.parameter_count(state.params):,}\n'
    'as the paper counts, R and M with R whole: '
    f'{lipnext.paper_parameter_count(state.params):,}\n',
  )
  path = os.path.join(workdir, 'run.json')
  starts = []
  if os.path.exists(path):
    with contextlib.suppress(ValueError):  # Damaged: it only tells of the past.
      starts = files.read_json(path)
    starts = starts if isinstance(starts, list) else []
  data = {
    'image_shape': dataset.image_shape,
    'num_classes': dataset.num_classes,
    'train_examples': len(dataset.train),
  }
  files.write_json(path, [*starts, {**describe_run(mesh), 'data': data}])


def read_data_facts(workdir: str) -> dict[str, Any]:
  """What the last start of a run knew of its data: enough to build its model.

  Returns:
    'image_shape' [H, W, ch], 'num_classes' and 'train_examples'.

  Raises:
    ConfigError: no run.json, or one without these.
  """
  try:
    facts = files.read_json(os.path.join(workdir, 'run.json'))[-1]['data']
    h, w, ch = facts['image_shape']
    numbers = h, w, ch, facts['num_classes'], facts['train_examples']
    if any(type(n) is not int or not 0 < n < 2**31 for n in numbers):
      raise ValueError('a number that counts nothing')
    return {
      'image_shape': (h, w, ch),
      'num_classes': facts['num_classes'],
      'train_examples': facts['train_examples'],
    }
  except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has no run.json that describes its data ({type(error).__name__})',
      'name the directory of a training run',
    ) from None


def describe_run(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Versions, devices and the commit of the code that runs."""
  here = os.path.dirname(os.path.abspath(__file__))
  git = ['git', '-C', here]
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
  try:
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return ''


class MetricWriter:
  """Scalars to `metrics.jsonl` and to TensorBoard event files.

  Lines beyond `start_step` (written after the checkpoint that is resumed
  from) are dropped, so that a resumed run's file reads like an undisturbed
  one. Only the first process writes.
  """

  def __init__(self, workdir: str, start_step: int = 0):
    """Opens the files below `workdir` for appending."""
    self._enabled = jax.process_index() == 0
    if not self._enabled:
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    if os.path.exists(path):
      files.write_text(path, _lines_until(path, start_step))
    self._jsonl = files.append(path)
    # Not `SummaryWriter`: on a full disk its thread dies, and the run hangs.
    folder = os.path.join(workdir, 'tensorboard')
    os.makedirs(folder, exist_ok=True)
    self._board = event_file_writer.EventsWriter(os.path.join(folder, 'events'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write_event(start_step + 1, session_log=start)  # Hides what is newer.
    self._flushed = 0.0  # When; 0: long ago.

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """One line, and one event per scalar."""
    if not self._enabled:
      return
    with files.naming(self._jsonl.name):
      self._jsonl.write(json.dumps({'step': step, **scalars}) + '\n')
      self._jsonl.flush()
    for name, value in scalars.items():
      self._write_event(step, summary=board_summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._board.flush()
      self._flushed = time.monotonic()

  def _write_event(self, step: int, **content: Any) -> None:
    event = event_pb2.Event(step=step, wall_time=time.time(), **content)
    self._board.write_event(event)

  def close(self) -> None:
    """Flushes everything."""
    if self._enabled:
      self._jsonl.close()
      self._board.close()


def _lines_until(path: str, last_step: int) -> str:
  kept = []
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        newer = json.loads(line)['step'] > last_step
      except (ValueError, KeyError, TypeError, RecursionError):
        break  # A line that a kill cut short; what follows it is newer.
      if newer:
        break
      kept.append(line)
  return ''.join(kept)


class Progress:
  """A progress bar on stderr: step, ETA, images/s and the last metrics."""

  def __init__(self, total_steps: int, start_step: int, batch_size: int):
    """Starts the clock."""
    self._batch_size = batch_size
    self._last = (start_step, time.perf_counter())
    self._paused = 0.0  # Seconds since the last update that do not count.
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=start_step,
      unit='step',
      disable=jax.process_index() != 0,
      dynamic_ncols=True,
      mininterval=0.5,
      bar_format=(
        '{n_fmt}/{total_fmt} steps |{bar:12}| {elapsed} eta {remaining}'
        '{postfix}'
      ),
    )

  def update(self, step: int, scalars: Mapping[str, float]) -> float:
    """Moves the bar to `step`; returns images/s since the last call."""
    now = time.perf_counter()
    steps = step - self._last[0]
    seconds = now - self._last[1] - self._paused
    rate = steps * self._batch_size / max(seconds, 1e-9)
    self._last, self._paused = (step, now), 0.0
    self._bar.set_postfix_str(
      f'{rate:.0f} img/s '
      f'loss {scalars.get("train/loss", math.nan):.3f} '
      f'clean {scalars.get("train/clean", math.nan):.1f}% '
      f'cert {scalars.get("train/certified", math.nan):.1f}% '
      f'ε {scalars["train/epsilon"]:.3f} '
      f'lr {scalars["train/learning_rate"]:.1e} '
      f'orth {scalars["train/orthogonality_error"]:.0e}',
      refresh=False,
    )
    self._bar.update(steps)
    return rate

  def say(self, message: str) -> None:
    """A line on stderr above the bar, from the first process only."""
    if jax.process_index() == 0:
      self._bar.write(message, file=sys.stderr)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the block's time (monitoring, saving) out of images/s."""
    start = time.perf_counter()
    yield
    self._paused += time.perf_counter() - start

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    """Ends the bar, so that what is said of an error comes below it."""
    self._bar.close()


def write_evaluation(
  workdir: str, result: evaluate.Evaluation, summary: Mapping[str, Any]
) -> None:
  """`eval.json` and `radii.csv` (id, label, prediction, radius).

  Radii are ℓ2 in [0, 1] pixel units, with all their float32 digits.
  """
  rows = zip(
    result.ids.tolist(),
    result.labels.tolist(),
    result.predictions.tolist(),
    result.radii.tolist(),
    strict=True,
  )
  table = io.StringIO(newline='')
  writer = csv.writer(table)
  writer.writerow(['id', 'label', 'prediction', 'radius'])
  writer.writerows(rows)
  files.write_text(os.path.join(workdir, 'radii.csv'), table.getvalue())
  files.write_json(os.path.join(workdir, 'eval.json'), summary)


def _constant(bound: float) -> str:
  """Writes Λ, rounded up: by its excess over 1 where that is small."""
  if 1 <= bound < 1.1:
    return f'1 + {decimals.excess_up(bound)}'
  return decimals.up(bound, 4)


def print_table(
  summary: Mapping[str, Any], title: str, file: TextIO | None = None
) -> None:
  """The final numbers, for people."""
  lines = [
    title,
    f'  examples                {summary["examples"]:>8d}',
    f'  clean accuracy          {summary["clean"]:>8.2f} %',
  ]
  for epsilon, value in summary['cra'].items():
    lines.append(f'  CRA at ℓ2 ε = {epsilon:<9s} {value:>8.2f} %')
  constant = _constant(summary['lipschitz_bound'])
  lines.append(f'  Lipschitz bound Λ       {constant} (proved)')
  if 'logit_error' in summary:
    error = summary['logit_error']
    shown = decimals.up(error, 2)
    lines.append(f'  rounding of logits E    {shown} (bounded, subtracted)')
  else:
    note = 'float32, an estimate subtracted (fast mode)'
    lines.append(f'  rounding of logits      {note}')
  print('\n'.join(lines), file=file or sys.stdout, flush=True)
