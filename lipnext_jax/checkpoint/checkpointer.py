"""Saves the checkpoints of a run with Orbax."""

from collections.abc import Iterator
import contextlib
import glob
import math
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.checkpoint import manifest
from lipnext_jax.checkpoint import reader
from lipnext_jax.parallel import distributed
from lipnext_jax.runtime import explain


def _metric(metrics: Any) -> float:
  """Returns the accuracy by which the best checkpoint is chosen."""
  return metrics[reader.METRIC]


class Checkpointer(reader.CheckpointReader):
  """Saves, verifies and restores the states of the run that holds the lock."""

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Sets damaged checkpoints aside and removes unfinished saves.

    Args:
      workdir: workdir of the run, whose lock the caller holds.
      config_hash: hash from `checkpoint.hash_config`.
    """
    super().__init__(workdir, config_hash=config_hash)
    # On the file system of the checkpoints, so that moving there is a rename.
    self._damaged = os.path.join(os.path.dirname(self._directory), 'damaged')
    self._saving: tuple[str, dict[str, Any]] | None = None
    distributed.on_first(self._set_damaged_aside)
    keep = ocp.checkpoint_managers.AnyPreservationPolicy(
      [
        ocp.checkpoint_managers.LatestN(2),
        ocp.checkpoint_managers.BestN(get_metric_fn=_metric, n=1),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=_metric,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_manifest
        ),
      ),
    )

  def _set_damaged_aside(self) -> None:
    """Moves damaged checkpoints into `damaged/`, each with a message."""
    largest = math.inf
    for step in reversed(self.list_steps()):
      if self._is_whole(step, largest):
        # Of those older than the first whole one, Orbax reads metrics only.
        largest = reader.SMALL
      else:
        target = files.move_aside(self._path(step), self._damaged)
        print(f'checkpoint {step} is set aside as {target}', file=sys.stderr)

  def find_newest(self) -> int | None:
    """Returns the newest step, or None if there is no checkpoint.

    Raises:
      CheckpointError: all checkpoints are damaged.
    """
    step = self._manager.latest_step()
    if step is None and files.exists(self._damaged):
      raise errors.CheckpointError(
        f'{self._workdir} holds only damaged checkpoints, now in '
        f'{self._damaged}; put a good copy back, or remove that folder to '
        'start again'
      )
    return step

  def save(self, step: int, state: Any, certified: float | None = None) -> None:
    """Starts saving, and returns as soon as the state may be donated.

    Args:
      step: number of updates.
      state: tree of arrays with their shardings.
      certified: certified accuracy, if it was monitored at this step.

    Raises:
      CheckpointError: this save or the one before could not be written.
    """
    self.wait()
    with self._explained():
      # `_write_manifest` needs this when Orbax has written the arrays.
      self._saving = self._path(step), manifest.describe_arrays(state)
      # On CPU, Orbax reads the buffers in the background, where the next step
      # may write.
      state = jax.tree.map(jnp.copy, state)
      metric = reader.UNMONITORED if certified is None else certified
      self._manager.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics={reader.METRIC: metric},
      )

  def _write_manifest(self) -> None:
    """Writes the manifest; Orbax calls this before it names the directory."""
    if jax.process_index() == 0 and self._saving is not None:
      path, arrays = self._saving
      # In a bucket, the directory has its final name from the start.
      (directory,) = glob.glob(f'{glob.escape(path)}.orbax-*') or (path,)
      manifest.write(directory, arrays=arrays, config_hash=self._config_hash)

  def wait(self) -> None:
    """Waits until the current save is complete.

    Raises:
      CheckpointError: the save could not be written.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> int | None:
    """Waits for the current save; returns the newest step, if there is one."""
    self.wait()
    newest = self._manager.latest_step()
    self._manager.close()
    return newest

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns an error of a full or read-only disk into one line."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise their own kinds.
      known = explain.explain(error)
      if isinstance(known, errors.LostProcessError):
        raise known from error
      raise errors.CheckpointError(
        f'{self._directory}: a checkpoint could not be written '
        f'({explain.quote(error)}); '
        'older ones are intact: make room or permit writing, then start again'
      ) from error
