"""Reads the checkpoints of a run, which may still be training.

A reader writes, renames and removes nothing: evaluation, certification, attacks
and exports do not hold the lock of the run.
"""

import math
import os
import sys
from typing import Any

import orbax.checkpoint as ocp

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.checkpoint import manifest
from lipnext_jax.parallel import distributed

FOLDER = 'checkpoints'
METRIC = 'certified'  # Certified accuracy in per cent, which chooses the best.
UNMONITORED = -1.0  # METRIC of checkpoints that were not evaluated.
SMALL = 1 << 16  # Bytes: larger than metrics, smaller than large arrays.


class CheckpointReader:
  """Chooses, verifies and restores checkpoints without changing them."""

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Reads nothing yet.

    Args:
      workdir: workdir of the run.
      config_hash: hash that `restore` expects, from `checkpoint.hash_config`;
        '' accepts any config.
    """
    self._workdir = workdir
    self._directory = files.real_path(os.path.join(workdir, FOLDER))
    self._config_hash = config_hash

  def list_steps(self) -> list[int]:
    """Lists the steps of the finished checkpoints, ascending."""
    names = files.list_folder(self._directory)
    steps = sorted(int(name) for name in names if name.isdecimal())
    return [s for s in steps if manifest.is_committed(self._path(s))]

  def choose(self, which: str) -> int:
    """Returns the step of the last or best checkpoint that is not damaged.

    Prints a message for each damaged checkpoint that it meets.

    Args:
      which: 'last', or 'best' by monitored certified accuracy.

    Raises:
      ConfigError: there are no checkpoints.
      CheckpointError: all checkpoints are damaged, or none was monitored.
    """
    return distributed.on_first(lambda: self._choose(which))

  def _choose(self, which: str) -> int:
    """Chooses in the first process."""
    steps = self.list_steps()
    if not steps:
      raise errors.ConfigError(
        '--workdir',
        self._workdir,
        'holds no checkpoint to evaluate',
        'train there first (--mode=train)',
      )
    candidates = self._sort_by_metric(steps) if which == 'best' else steps
    for step in reversed(candidates):
      if self._is_whole(step):
        return step
    monitored = 'monitored ' if which == 'best' else ''
    raise errors.CheckpointError(
      f'{self._directory} holds no {monitored}checkpoint that is not damaged; '
      'put a good copy there, choose another eval.checkpoint, or train in '
      'another directory'
    )

  def _sort_by_metric(self, steps: list[int]) -> list[int]:
    """Sorts the monitored steps by metric, then by age; the best is last."""
    found = []
    for step in steps:
      if self._is_whole(step, SMALL):
        path = os.path.join(self._path(step), 'metrics', 'metrics')
        value = files.read_json(path)[METRIC]
        if value != UNMONITORED:
          found.append((value, step))
    return [step for _, step in sorted(found)]

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
      manifest.check_matches(path, abstract_state, self._config_hash)
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

  def _path(self, step: int) -> str:
    """Returns the directory of a checkpoint."""
    return os.path.join(self._directory, str(step))
