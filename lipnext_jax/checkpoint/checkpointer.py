"""Saves, verifies and restores the checkpoints of a run with Orbax."""

from collections.abc import Iterator
import contextlib
import glob
import math
import operator
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax import parallel
from lipnext_jax.checkpoint import manifest
from lipnext_jax.runtime import command

_METRIC = 'certified'  # Certified accuracy in per cent, which chooses the best.
_UNMONITORED = -1.0  # _METRIC of checkpoints that were not evaluated.
_SMALL = 1 << 16  # Bytes: larger than metrics, smaller than large arrays.


class CheckpointReader:
  """Chooses, verifies and restores checkpoints of a run that may go on.

  It writes, renames and removes nothing: evaluation, certification, attacks and
  exports do not hold the lock of the run.
  """

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Reads nothing yet.

    Args:
      workdir: workdir of the run.
      config_hash: hash that `restore` expects, from `checkpoint.hash_config`;
        '' accepts any config.
    """
    self._workdir = workdir
    self._directory = os.path.join(workdir, 'checkpoints')
    if not files.is_remote(workdir):
      self._directory = os.path.realpath(self._directory)
    self._config_hash = config_hash

  def list_steps(self) -> list[int]:
    """Lists the steps of the finished checkpoints, ascending."""
    names = files.list_folder(self._directory)
    steps = sorted(int(name) for name in names if name.isdecimal())
    if files.is_remote(self._directory):  # Saves there have no other name.
      last = manifest.COMMITTED
      steps = [s for s in steps if files.exists(f'{self._path(s)}/{last}')]
    return steps

  def choose(self, which: str) -> int:
    """Returns the step of the last or best checkpoint that is not damaged.

    Prints a message for each damaged checkpoint that it meets.

    Args:
      which: 'last', or 'best' by monitored certified accuracy.

    Raises:
      ConfigError: there are no checkpoints.
      CheckpointError: all checkpoints are damaged, or none was monitored.
    """
    return parallel.on_first(lambda: self._choose(which))

  def _choose(self, which: str) -> int:
    """Chooses in the first process."""
    steps, monitored = self.list_steps(), ''
    if not steps:
      raise errors.ConfigError(
        '--workdir',
        self._workdir,
        'holds no checkpoint to evaluate',
        'train there first (--mode=train)',
      )
    if which == 'best':
      metrics = {
        step: self._read_metric(step)
        for step in steps
        if self._is_whole(step, _SMALL)
      }
      steps = [step for step in metrics if metrics[step] != _UNMONITORED]
      steps.sort(key=lambda step: metrics[step])  # Equals stay sorted by age.
      monitored = 'monitored '
    for step in reversed(steps):
      if self._is_whole(step):
        return step
    raise errors.CheckpointError(
      f'{self._directory} holds no {monitored}checkpoint that is not damaged; '
      'put a good copy there, choose another eval.checkpoint, or train in '
      'another directory'
    )

  def _read_metric(self, step: int) -> float:
    path = os.path.join(self._path(step), 'metrics', 'metrics')
    return files.read_json(path)[_METRIC]

  def _is_whole(self, step: int, largest: float = math.inf) -> bool:
    """Verifies a checkpoint up to a size of files; prints its damage."""
    damage = manifest.find_damage(self._path(step), largest)
    # A checkpoint that is gone was removed by its run, and is not damaged.
    if damage is not None and files.exists(self._path(step)):
      print(
        f'checkpoint {step} is damaged ({damage}): it is not used',
        file=sys.stderr,
      )
    return damage is None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """Returns the state at `step`, in the layout of `abstract_state`.

    Args:
      step: step from `choose`.
      abstract_state: tree of `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      CheckpointError: another architecture or config made the checkpoint, or
        its run has removed it meanwhile.
    """
    path = self._path(step)
    try:
      self._check_matches(path, abstract_state)
      # A read-only CheckpointManager would print three warnings.
      with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(
          os.path.join(path, 'default'), abstract_state
        )
    except (OSError, ValueError) as error:
      if files.exists(path):
        raise
      raise errors.CheckpointError(
        f'{path} was removed while it was read, by the run that is still '
        'training: try again'
      ) from error

  def _check_matches(self, path: str, abstract_state: Any) -> None:
    """Checks that a checkpoint has the arrays and the config expected."""
    stored = manifest.read(path)
    there, here = stored['arrays'], manifest.describe_arrays(abstract_state)
    for name in sorted(there.keys() | here.keys()):
      if there.get(name) != here.get(name):
        was, wanted = (
          '{1}{0}'.format(*arrays[name]) if name in arrays else 'absent'
          for arrays in (there, here)
        )
        raise errors.CheckpointError(
          f'{name} is {was} in {path}, and {wanted} with this config: choose '
          'another --workdir'
        )
    if self._config_hash not in ('', stored['config_hash']):
      raise errors.CheckpointError(
        f'{path} was made with another config, though its arrays have the '
        'same shapes: choose another --workdir'
      )

  def _path(self, step: int) -> str:
    """Returns the directory of a checkpoint."""
    return os.path.join(self._directory, str(step))


class Checkpointer(CheckpointReader):
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
    parallel.on_first(self._set_damaged_aside)
    metric = operator.itemgetter(_METRIC)
    keep = ocp.checkpoint_managers.AnyPreservationPolicy(
      [
        ocp.checkpoint_managers.LatestN(2),
        ocp.checkpoint_managers.BestN(get_metric_fn=metric, n=1),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=metric,
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
        largest = _SMALL
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
      metric = _UNMONITORED if certified is None else certified
      self._manager.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics={_METRIC: metric},
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
      known = command.explain(error)
      if isinstance(known, errors.LostProcessError):
        raise known from error
      raise errors.CheckpointError(
        f'{self._directory}: a checkpoint could not be written '
        f'({command.quote(error)}); '
        'older ones are intact: make room or permit writing, then start again'
      ) from error
