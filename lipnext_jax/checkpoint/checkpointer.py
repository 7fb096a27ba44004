"""Saves the checkpoints of a run with Orbax."""

from collections.abc import Iterator
import contextlib
import glob
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

DAMAGED = 'damaged'  # Folder, beside that of the checkpoints.


def _metric(metrics: Any) -> float:
  return metrics[reader.METRIC]


class Checkpointer(reader.CheckpointReader):
  """Saves, verifies and restores the states of a run, which it owns."""

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Sets damaged checkpoints aside and removes unfinished saves.

    Args:
      workdir: of the run; the caller holds its lock.
      config_hash: from `checkpoint.hash_config`.
    """
    super().__init__(workdir, config_hash=config_hash)
    # On the file system of the checkpoints, wherever a link leads.
    real = files.absolute(self._directory, follow_links=True)
    self._damaged = os.path.join(os.path.dirname(real), DAMAGED)
    self._saving: tuple[int, dict[str, Any]] | None = None
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
    whole = False
    for step in reversed(self.list_steps()):
      # Orbax reads only the metrics of those older than the one to be used.
      largest = reader.SMALL if whole else None
      damage = manifest.find_damage(self._path(step), largest)
      if damage is None:
        whole = True
        continue
      target = files.move_aside(self._path(step), self._damaged)
      print(
        f'checkpoint {step} is damaged ({damage}): set aside as {target}',
        file=sys.stderr,
        flush=True,
      )

  def find_newest(self) -> int | None:
    """Returns the newest step, or None if there is no checkpoint.

    Raises:
      CheckpointError: there were checkpoints, and all of them are damaged.
    """
    step = self._manager.latest_step()
    if step is None and files.is_folder(self._damaged):
      raise errors.CheckpointError(
        f'{self._workdir} holds only damaged checkpoints, now in '
        f'{self._damaged}; put a good copy back, or remove that folder to '
        'start again'
      )
    return step

  def save(self, step: int, state: Any, certified: float | None = None) -> None:
    """Starts saving; returns as soon as the state may be donated again.

    Args:
      step: number of updates.
      state: arrays, with their shardings.
      certified: certified accuracy, if it was monitored at this step.

    Raises:
      CheckpointError: this or the save before it could not be written.
    """
    self.wait()
    with self._explained():
      # For the manifest, which follows when Orbax has written the arrays.
      self._saving = step, manifest.describe_arrays(state)
      # A copy: on CPU Orbax reads the buffers in the background, and the next
      # step donates them.
      state = jax.tree.map(jnp.copy, state)
      metric = reader.UNMONITORED if certified is None else certified
      self._manager.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics={reader.METRIC: metric},
      )

  def _write_manifest(self) -> None:
    """Lists the files, called by Orbax before it names the directory."""
    if jax.process_index() != 0 or self._saving is None:
      return
    step, arrays = self._saving
    path = self._path(step)
    # In a bucket it has its name from the start.
    (directory,) = glob.glob(f'{glob.escape(path)}.orbax-*') or (path,)
    manifest.write(
      directory, step=step, arrays=arrays, config_hash=self._config_hash
    )

  def wait(self) -> None:
    """Waits until the save in flight is complete.

    Raises:
      CheckpointError: it could not be written.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> int | None:
    """Waits as `wait` does; returns the newest step, if there is any."""
    self.wait()
    newest = self._manager.latest_step()
    self._manager.close()
    return newest

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns the error of a full or read-only disk into one line."""
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
