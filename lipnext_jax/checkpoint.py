"""Checkpoints with Orbax: asynchronous, atomic, the last and the best kept.

A workdir holds `config.json` (every field of the config that made it) and
`checkpoints/<step>/`. Four cases when a run starts:

  1. no workdir, or an empty one: start from scratch;
  2. a config.json that differs where it matters: refuse (`check_workdir`);
  3. checkpoints: restore the newest, go on at its step;
  4. a config.json but no finished checkpoint: start from scratch.
"""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import files

CONFIG_FILE = 'config.json'
_METRIC = 'certified'  # What 'best' means: larger is better, in per cent.
_UNMONITORED = -1.0  # Of a checkpoint between evaluations: below any other.


def check_workdir(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Refuses a workdir that another config's run lives in. Writes nothing.

  Raises:
    ConfigError: naming the first field that differs, with both values.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise errors.ConfigError(
      '--workdir', workdir, 'is a file', 'name a directory'
    )
  if not os.path.exists(path):
    return
  try:
    with open(path, encoding='utf-8') as file:
      stored = json.load(file)
  except (OSError, ValueError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has an unreadable {CONFIG_FILE} ({error})',
      'choose another directory',
    ) from None
  # Through JSON and back: tuples become lists.
  own = json.loads(json.dumps(config_lib.identity(config)))
  for name, value in own.items():
    if name not in stored or stored[name] != value:
      raise errors.ConfigError(
        name,
        value,
        f'differs from {stored.get(name)!r}, with which the run in '
        f'{workdir} was made',
        'choose another --workdir or that value',
      )


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json, from the first process, creating the workdir."""
  if jax.process_index() != 0:
    return
  os.makedirs(workdir, exist_ok=True)
  files.write_json(
    os.path.join(workdir, CONFIG_FILE), config_lib.build_field_list(config)
  )


class Checkpointer:
  """Saves and restores train states under `workdir/checkpoints`."""

  def __init__(self, workdir: str, *, create: bool = True):
    """Opens the directory; without `create` it must exist already.

    Raises:
      ConfigError: there is nothing to restore and nothing may be created.
    """
    self._workdir = workdir
    directory = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    if not create and not os.path.isdir(directory):
      raise self._missing('any')
    keep = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(1),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[_METRIC],
          n=1,
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=lambda metrics: metrics[_METRIC],
        create=create,
        cleanup_tmp_directories=create,
      ),
    )

  def choose(self, which: str | None) -> int | None:
    """The step to restore.

    Args:
      which: 'last', 'best' (by monitored certified accuracy), or None: the
        last if there is one.

    Raises:
      ConfigError: a checkpoint was asked for that is not there.
    """
    self._manager.wait_until_finished()
    if which == 'best':
      step = self._manager.best_step()
      if step is not None and self._certified(step) == _UNMONITORED:
        step = None
    else:
      step = self._manager.latest_step()
    if which is not None and step is None:
      raise self._missing(which)
    return step

  def _certified(self, step: int) -> float:
    return self._manager.metrics(step)[_METRIC]

  def _missing(self, which: str) -> errors.ConfigError:
    return errors.ConfigError(
      '--workdir',
      self._workdir,
      f'holds no checkpoint to evaluate ({which})',
      'train there first (--mode=train)',
    )

  def save(self, step: int, state: Any, certified: float | None = None) -> None:
    """Starts saving; returns as soon as the state may be donated again.

    Args:
      step: updates done.
      state: arrays, with their shardings.
      certified: monitored certified accuracy, by which the best is chosen.
    """
    if step in self._manager.all_steps():
      return
    # A copy: on CPU Orbax reads the buffers in the background, and the next
    # step donates them.
    state = jax.tree.map(jnp.copy, state)
    self._manager.save(
      step,
      args=ocp.args.StandardSave(state),
      metrics={_METRIC: _UNMONITORED if certified is None else certified},
    )

  def restore(self, step: int, abstract_state: Any) -> Any:
    """The state at `step`, laid out as `abstract_state` says.

    Args:
      step: of an existing checkpoint.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings.
    """
    return self._manager.restore(
      step, args=ocp.args.StandardRestore(abstract_state)
    )

  def close(self) -> None:
    """Waits for saves in flight."""
    self._manager.wait_until_finished()
    self._manager.close()
