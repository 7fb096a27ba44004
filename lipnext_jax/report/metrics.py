"""Writes metrics and shows progress while a run trains."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import math
import os
import sys
import time
from typing import Any
from typing import Self

import jax
from tensorboardX import event_file_writer
from tensorboardX import summary as board_summary
from tensorboardX.proto import event_pb2
import tqdm

from lipnext_jax import files

_FLUSH_SECONDS = 30  # Between writes of TensorBoard's file to the disk.


def log(message: str) -> None:
  """Prints a line on stderr, from the first process only."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stopwatch(what: str) -> Iterator[None]:
  """Says how long the block took."""
  start = time.perf_counter()
  yield
  log(f'{what} in {time.perf_counter() - start:.1f} s')


def read_metrics(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each line of a `metrics.jsonl` with the scalars that it holds.

  It stops at the first line that a kill cut short or that is damaged.
  """
  with open(path, encoding='utf-8', errors='replace') as file:
    for line in file:
      try:
        scalars = json.loads(line)
        scalars['step'] = int(scalars['step'])
      except (ValueError, LookupError, TypeError, ArithmeticError):
        return
      except RecursionError:  # Brackets that nest without end.
        return
      yield line, scalars


class MetricWriter:
  """Writes scalars to `metrics.jsonl` and to a TensorBoard event file.

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
      kept = []
      for line, scalars in read_metrics(path):
        if scalars['step'] > start_step:
          break
        kept.append(line)
      files.write_text(path, ''.join(kept))
    self._jsonl = files.append(path)
    # Not `SummaryWriter`: on a full disk its thread dies, and the run hangs.
    folder = os.path.join(workdir, 'tensorboard')
    os.makedirs(folder, exist_ok=True)
    self._board = event_file_writer.EventsWriter(os.path.join(folder, 'events'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write_event(start_step + 1, session_log=start)  # Hides what is newer.
    self._flushed = -math.inf

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one line, and one event per scalar."""
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
    """Writes what is buffered and closes the files."""
    if self._enabled:
      self._jsonl.close()
      self._board.close()


class Progress:
  """Shows a bar on stderr: step, ETA, images/s and the last metrics."""

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

  def log(self, message: str) -> None:
    """Prints a line on stderr above the bar, from the first process only."""
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
