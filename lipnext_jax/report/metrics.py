"""Writes metrics and shows progress while a run trains."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import math
import os
import sys
import threading
import time
from typing import Any
from typing import Self

import jax
from tensorboardX import event_file_writer
from tensorboardX import summary as board_summary
from tensorboardX.proto import event_pb2
import tqdm

from lipnext_jax import files

_TICK_SECONDS = 1  # Between two movements of the progress bar.
_FLUSH_SECONDS = 30  # Between writes of TensorBoard's file to the disk.


def log(message: str) -> None:
  """Prints a line on stderr, from the first process only."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stopwatch(what: str, patience: float = 0.0) -> Iterator[None]:
  """Says what the block does before it starts, and how long it took.

  Args:
    what: e.g. 'compiling the train step'.
    patience: seconds that the block may take before anything is said.
  """
  start = time.perf_counter()
  timer = threading.Timer(patience, log, [f'{what} …'])
  timer.daemon = True
  if patience:
    timer.start()
  else:
    log(f'{what} …')
  try:
    yield
  finally:
    timer.cancel()
  if (seconds := time.perf_counter() - start) >= patience:
    log(f'{what} took {seconds:.1f} s')


def read_metrics(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each line of a `metrics.jsonl` with the scalars that it holds.

  It stops at the first line that a kill cut short or that is damaged.
  """
  with files.open_text(path, errors='replace') as file:
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
  one. Only the first process writes. In a bucket, there are no event files.
  """

  def __init__(self, workdir: str, start_step: int = 0):
    """Opens the files below `workdir` for appending."""
    self._enabled = jax.process_index() == 0
    if not self._enabled:
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    if files.exists(path):
      kept = []
      for line, scalars in read_metrics(path):
        if scalars['step'] > start_step:
          break
        kept.append(line)
      files.write_text(path, ''.join(kept))
    self._jsonl = files.append(path)
    self._board: Any = None
    if files.is_remote(workdir):
      return
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
    if self._board is None:
      return
    for name, value in scalars.items():
      self._write_event(step, summary=board_summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._board.flush()
      self._flushed = time.monotonic()

  def flush(self) -> None:
    """Sends what was written to a bucket; on a disk it is there already."""
    if self._enabled:
      self._jsonl.flush()

  def _write_event(self, step: int, **content: Any) -> None:
    event = event_pb2.Event(step=step, wall_time=time.time(), **content)
    self._board.write_event(event)

  def close(self) -> None:
    """Writes what is buffered and closes the files."""
    if self._enabled:
      self._jsonl.close()
      if self._board is not None:
        self._board.close()


class Progress:
  """Shows a bar on stderr: step, ETA, images/s and the last metrics."""

  def __init__(self, total_steps: int, start_step: int, batch_size: int):
    """Starts the clock."""
    self._batch_size = batch_size
    self._paused = 0.0  # Seconds that do not count in images/s.
    self._updated = self._ticked = (start_step, time.perf_counter())
    self._stride = 1  # Steps between two movements of the bar.
    self._details = ''  # Of the last log line.
    self.failing = ''  # What is wrong with the run, to be shown in the bar.
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=start_step,
      unit='step',
      disable=jax.process_index() != 0,
      dynamic_ncols=True,
      mininterval=0.1,
      miniters=1,
      bar_format=(
        '{n_fmt}/{total_fmt} steps |{bar:12}| {elapsed} eta {remaining}'
        '{postfix}'
      ),
    )

  def tick(self, step: int, loss: jax.Array) -> None:
    """Moves the bar to `step` about once a second, or at every longer step.

    Args:
      step: updates sent to the devices.
      loss: of them, on the devices; fetched, and so waited for, only when it is
        shown. (The devices lag behind by many steps, and a clock would not
        tell.)
    """
    if step - self._ticked[0] < self._stride:
      return
    value = float(jax.device_get(loss))
    rate, self._ticked = self._measure(step, self._ticked)
    self._show(step, rate, value)
    wanted = int(_TICK_SECONDS * rate / self._batch_size)
    self._stride = max(1, min(wanted, 2 * self._stride))

  def update(self, step: int, scalars: Mapping[str, float]) -> float:
    """Moves the bar to `step`; returns images/s since the last call."""
    rate, self._updated = self._measure(step, self._updated)
    self._ticked = self._updated
    self._details = (
      f' clean {scalars.get("train/clean", math.nan):.1f}% '
      f'cert {scalars.get("train/certified", math.nan):.1f}% '
      f'ε {scalars["train/epsilon"]:.3f} '
      f'lr {scalars["train/learning_rate"]:.1e} '
      f'orth {scalars["train/orthogonality_error"]:.0e}'
    )
    self._show(step, rate, scalars.get('train/loss', math.nan))
    return rate

  def _now(self) -> float:
    return time.perf_counter() - self._paused

  def _measure(
    self, step: int, since: tuple[int, float]
  ) -> tuple[float, tuple[int, float]]:
    """Returns images/s since a (step, time), and the (step, time) of now."""
    now = self._now()
    seconds = max(now - since[1], 1e-9)
    return (step - since[0]) * self._batch_size / seconds, (step, now)

  def _show(self, step: int, rate: float, loss: float) -> None:
    failing = f'FAILING: {self.failing}, ' if self.failing else ''
    self._bar.set_postfix_str(
      f'{failing}{rate:.0f} img/s loss {loss:.3f}{self._details}', refresh=False
    )
    self._bar.update(step - self._bar.n)

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
