"""Reads the checkpoints of a run that may still be going on.

Evaluation, certification, attacks and exports use what a run has saved, whoever
owns the run: nothing here is renamed, removed or written. The run itself has
`lipnext_jax.checkpoint`.
"""

import os
import sys
import time
from typing import Any

import orbax.checkpoint as ocp

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax import manifest
from lipnext_jax.parallel import distributed

# A checkpoint is read again after so many seconds before it is called damaged:
# its run may just have been removing it.
_AGAIN = 1.0


class CheckpointReader:
  """Chooses, verifies and restores; changes nothing."""

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Reads nothing yet.

    Args:
      workdir: of the run.
      config_hash: of the config that has to have made the states; see
        `checkpoint.hash_config`. '': any.
    """
    self._workdir = workdir
    self._directory = os.path.abspath(os.path.join(workdir, checkpoint.FOLDER))
    self._config_hash = config_hash

  def choose(self, which: str) -> int:
    """The newest (or best) step of which every byte is as it was written.

    Damaged checkpoints that are met on the way are left where they are, and
    named.

    Args:
      which: 'last', or 'best' by monitored certified accuracy.

    Raises:
      ConfigError: there is no such checkpoint.
      CheckpointError: there are, and all of them are damaged.
    """
    return distributed.on_first(lambda: self._choose(which))

  def _choose(self, which: str) -> int:
    damages: dict[int, str] = {}
    while candidates := [s for s in self._list() if s not in damages]:
      if which == 'best':
        candidates = self._sort_by_metric(candidates, damages)
      if not candidates:
        break
      step = candidates[-1]
      if self._is_whole(step, damages):
        return step
    if damages and (which == 'last' or not set(self._list()) - damages.keys()):
      step, damage = max(damages.items())
      raise errors.CheckpointError(
        f'{self._directory} holds only damaged checkpoints ({step}: {damage}); '
        'put a good copy there, or train again in another directory'
      )
    raise errors.ConfigError(
      '--workdir',
      self._workdir,
      f'holds no checkpoint to evaluate ({which})',
      'train there first (--mode=train)',
    )

  def _list(self) -> list[int]:
    return checkpoint.list_steps(self._directory)

  def _sort_by_metric(
    self, steps: list[int], damages: dict[int, str]
  ) -> list[int]:
    """Those that were monitored, the best at the end; of equals the newest."""
    found = []
    for step in steps:
      if not self._is_whole(step, damages, checkpoint.SMALL):
        continue
      path = os.path.join(self._path(step), 'metrics', 'metrics')
      value = files.read_json(path)[checkpoint.METRIC]
      if value != checkpoint.UNMONITORED:
        found.append((value, step))
    return [step for _, step in sorted(found)]

  def _is_whole(
    self, step: int, damages: dict[int, str], largest: int | None = None
  ) -> bool:
    """Verifies; what is there and damaged is said, and noted in `damages`."""
    damage = manifest.find_damage(self._path(step), largest)
    if damage is None:
      return True
    time.sleep(_AGAIN)
    damage = manifest.find_damage(self._path(step), largest)
    if damage is not None and step in self._list():
      print(
        f'checkpoint {step} is damaged ({damage}): it is not used',
        file=sys.stderr,
        flush=True,
      )
      damages[step] = damage
    return damage is None

  def restore(self, step: int, abstract_state: Any) -> Any:
    """The state at `step`, laid out as `abstract_state` says.

    Args:
      step: from `choose`.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      CheckpointError: another architecture's or config's checkpoint, by its
        first difference; or one that its run has removed meanwhile.
    """
    try:
      manifest.check_matches(
        self._path(step), abstract_state, self._config_hash
      )
      with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(
          os.path.join(self._path(step), 'default'), abstract_state
        )
    except (OSError, ValueError) as error:
      if os.path.isdir(self._path(step)):
        raise
      raise errors.CheckpointError(
        f'{self._path(step)} was removed while it was read, by the run that '
        'goes on there: try again'
      ) from error

  def _path(self, step: int) -> str:
    return os.path.join(self._directory, str(step))
