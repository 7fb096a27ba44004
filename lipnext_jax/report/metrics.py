"""Metrics, messages and the progress bar of a run that trains."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from typing import Any

import jax
from tensorboardX import event_file_writer
from tensorboardX import summary as board_summary
from tensorboardX.proto import event_pb2
import tqdm

from lipnext_jax import files


def log(message: str) -> None:
  """Prints a line on stderr, above a progress bar, in the first process."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(message, file=sys.stderr)


@contextlib.contextmanager
def stopwatch(what: str, patience: float = 0.0) -> Iterator[None]:
  """Logs what a block does before it starts, and how long it took.

  Args:
    what: description of the block, e.g. 'compiling the train step'.
    patience: seconds that the block may take without a message.
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
  """Yields the lines of a `metrics.jsonl` and their scalars up to a bad one."""
  with files.open_text(path, errors='replace') as file:
    for line in file:
      try:
        scalars = json.loads(line)
        scalars['step'] = int(scalars['step'])
      except Exception:  # The line is cut short, or anything else.
        return
      yield line, scalars


class MetricWriter:
  """Writes scalars to `metrics.jsonl` and to a TensorBoard event file.

  Lines after `start_step`, the step of the checkpoint, are dropped, so that the
  file of a resumed run is that of an undisturbed one. The first process writes.
  A bucket gets no event files.
  """

  def __init__(self, workdir: str, start_step: int = 0):
    """Opens the files below `workdir` for appending."""
    self._board: Any = None
    if jax.process_index() != 0:
      self._jsonl = files.append(os.devnull)
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    if files.exists(path):
      kept = itertools.takewhile(
        lambda entry: entry[1]['step'] <= start_step, read_metrics(path)
      )
      files.write_text(path, ''.join(line for line, _ in kept))
    self._jsonl = files.append(path)
    if files.is_remote(workdir):
      return
    # `SummaryWriter` writes in a thread that dies on a full disk: a hang.
    folder = os.path.join(workdir, 'tensorboard')
    os.makedirs(folder, exist_ok=True)
    self._board = event_file_writer.EventsWriter(os.path.join(folder, 'events'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    # TensorBoard hides the events of earlier starts from this step on.
    self._write_event(start_step + 1, session_log=start)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes a line, and an event per scalar."""
    with files.naming(self._jsonl.name):
      self._jsonl.write(json.dumps({'step': step, **scalars}) + '\n')
    if self._board is not None:
      for name, value in scalars.items():
        self._write_event(step, summary=board_summary.scalar(name, value))
      self._board.flush()

  def flush(self) -> None:
    """Sends the lines to a bucket; on a disk, they are written already."""
    self._jsonl.flush()

  def _write_event(self, step: int, **content: Any) -> None:
    event = event_pb2.Event(step=step, wall_time=time.time(), **content)
    self._board.write_event(event)

  def close(self) -> None:
    """Closes the files."""
    self._jsonl.close()
    if self._board is not None:
      self._board.close()


class Progress(contextlib.AbstractContextManager):
  """Shows a bar on stderr: step, ETA, images/s and the last metrics."""

  def __init__(self, total_steps: int, start_step: int, batch_size: int):
    """Starts the clock."""
    self._batch_size = batch_size
    self._paused = 0.0  # Seconds that do not count in images/s.
    # (step, time) of the last call of `update` and of the last movement.
    self._updated = self._ticked = (start_step, time.perf_counter())
    self._stride = 1  # Steps between two movements of the bar.
    self._details = ''  # Metrics of the last log line.
    self.failing = ''  # Sign by which the run fails, shown in the bar.
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
      step: number of updates sent to the devices.
      loss: loss after these updates, on the devices. It is fetched only when it
        is shown. The fetch waits for the devices, which lag behind the host, so
        that rates are those of the devices.
    """
    if step - self._ticked[0] < self._stride:
      return
    value = float(jax.device_get(loss))
    rate, self._ticked = self._measure(step, self._ticked)
    self._show(step, rate, value)
    self._stride = max(1, min(int(rate / self._batch_size), 2 * self._stride))

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

  def _measure(
    self, step: int, since: tuple[int, float]
  ) -> tuple[float, tuple[int, float]]:
    """Returns images/s since a (step, time), and the current (step, time)."""
    now = time.perf_counter() - self._paused
    seconds = max(now - since[1], 1e-9)
    return (step - since[0]) * self._batch_size / seconds, (step, now)

  def _show(self, step: int, rate: float, loss: float) -> None:
    failing = f'FAILING: {self.failing}, ' if self.failing else ''
    self._bar.set_postfix_str(
      f'{failing}{rate:.0f} img/s loss {loss:.3f}{self._details}', refresh=False
    )
    self._bar.update(step - self._bar.n)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves the time of a block (monitoring, saving) out of images/s."""
    start = time.perf_counter()
    yield
    self._paused += time.perf_counter() - start

  def __exit__(self, *exception: object) -> None:
    """Closes the bar, so that an error is printed below it."""
    self._bar.close()
