"""Checkpoints with Orbax: asynchronous, atomic, verified.

A workdir holds `config.json` (every field of the config that made it) and
`checkpoints/<step>/`, each with a manifest of checksums. The last two and the
best are kept: the last but one goes only when the save after next is complete.
Cases when a run starts:

  1. no workdir, or an empty one: start from scratch;
  2. a config.json that differs where it matters: refuse (`check_workdir`);
  3. checkpoints: verify the newest, restore it, go on at its step;
  4. one that is damaged: set it aside, say so, take the next older one;
  5. all damaged: refuse, since starting again would bury what is left;
  6. a config.json but no finished checkpoint: start from scratch.
"""

from collections.abc import Iterator
import contextlib
import functools
import glob
import json
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import explain
from lipnext_jax import files
from lipnext_jax import manifest
from lipnext_jax.parallel import distributed

CONFIG_FILE = 'config.json'
FOLDER = 'checkpoints'
DAMAGED = 'damaged'  # Beside it: where checkpoints go that do not verify.
METRIC = 'certified'  # What 'best' means: larger is better, in per cent.
UNMONITORED = -1.0  # Of a checkpoint between evaluations: below any other.
SMALL = 1 << 16  # Bytes; metrics have less, arrays (those that matter) more.


def check_workdir(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Refuses a workdir that another config's run lives in. Writes nothing.

  Raises:
    ConfigError: naming the first field that differs, with both values.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  if '://' in workdir:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      'is an address, no path',
      'mount that storage where all processes see it, and name a directory',
    )
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise errors.ConfigError(
      '--workdir', workdir, 'is a file', 'name a directory'
    )
  if not os.path.exists(path):
    return
  try:
    stored = files.read_json(path)
    if not isinstance(stored, dict):
      raise ValueError('it holds no fields')
  except (OSError, ValueError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has an unreadable {CONFIG_FILE} ({error})',
      'choose another directory',
    ) from None
  own, defaults = _plain(config), _plain(config_lib.default_config())
  for name, value in own.items():
    # A field that is newer than the run did not act on it: its default.
    before = stored.get(name, defaults[name])
    if before != value:
      raise errors.ConfigError(
        name,
        value,
        f'differs from {before!r}, with which the run in {workdir} was made',
        'choose another --workdir or that value',
      )


def hash_config(config: ml_collections.ConfigDict) -> str:
  """One hash of what decides the sequence of states.

  Of the fields that are not at their defaults, so that a field that is added
  later leaves the hashes of older runs as they are.
  """
  own, defaults = _plain(config), _plain(config_lib.default_config())
  return manifest.hash_fields(
    {name: value for name, value in own.items() if value != defaults[name]}
  )


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The identity as JSON gives it back: tuples become lists."""
  return json.loads(json.dumps(config_lib.identity(config)))


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json, from the first process, creating the workdir."""
  if jax.process_index() != 0:
    return
  os.makedirs(workdir, exist_ok=True)
  files.write_json(
    os.path.join(workdir, CONFIG_FILE), config_lib.build_field_list(config)
  )


def list_steps(directory: str) -> list[int]:
  """Steps of the checkpoints with a final name in a folder, ascending.

  >>> list_steps('no such folder')
  []
  """
  if not os.path.isdir(directory):
    return []
  return sorted(int(s) for s in os.listdir(directory) if s.isdecimal())


class Checkpointer:
  """Saves, verifies and restores the states of a run, which it owns."""

  def __init__(self, workdir: str, *, config_hash: str = ''):
    """Opens the directory, makes it if need be, removes unfinished saves.

    Args:
      workdir: of the run; the caller holds its lock.
      config_hash: of what decides the states saved here; see `hash_config`.
    """
    self._workdir = workdir
    self._directory = os.path.abspath(os.path.join(workdir, FOLDER))
    self._config_hash = config_hash
    self._saving: tuple[int, dict[str, Any]] | None = None
    # Orbax reads all metrics at once: small files are verified before it.
    distributed.on_first(self._set_aside_damaged_metrics)
    keep = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(2),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[METRIC],
          n=1,
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=lambda metrics: metrics[METRIC],
        create=True,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_manifest
        ),
      ),
    )

  def choose(self) -> int | None:
    """The newest step of which every byte is as it was written; None: none.

    Damaged checkpoints that are met on the way are set aside, into `damaged/`
    beside their folder, with a message.

    Raises:
      CheckpointError: there were checkpoints, and all of them are damaged.
    """
    self._manager.wait_until_finished()
    while (step := self._manager.latest_step()) is not None:
      if not distributed.on_first(
        functools.partial(self._set_aside_damaged, step)
      ):
        return step
      self._manager.reload()
    if os.path.isdir(self._damaged):
      raise errors.CheckpointError(
        f'{self._workdir} holds only damaged checkpoints, now in '
        f'{self._damaged}; put a good copy back, or remove that folder to '
        'start again'
      )
    return None

  @property
  def _damaged(self) -> str:
    """On the file system of the checkpoints, wherever a link leads."""
    parent = os.path.dirname(os.path.realpath(self._directory))
    return os.path.join(parent, DAMAGED)

  def _set_aside_damaged_metrics(self) -> int:
    """Sets all checkpoints aside whose small files are damaged; how many."""
    steps = list_steps(self._directory)
    return sum(self._set_aside_damaged(step, SMALL) for step in steps)

  def _set_aside_damaged(self, step: int, largest: int | None = None) -> int:
    """Verifies a checkpoint; 1 if it was damaged and set aside, else 0."""
    damage = manifest.find_damage(self._path(step), largest)
    if damage is None:
      return 0
    os.makedirs(self._damaged, exist_ok=True)
    names = (os.path.join(self._damaged, f'{step}-{i}') for i in range(10**6))
    target = next(name for name in names if not os.path.lexists(name))
    os.rename(self._path(step), target)
    print(
      f'checkpoint {step} is damaged ({damage}): set aside as {target}',
      file=sys.stderr,
      flush=True,
    )
    return 1

  def _path(self, step: int) -> str:
    return os.path.join(self._directory, str(step))

  def save(self, step: int, state: Any, certified: float | None = None) -> None:
    """Starts saving; returns as soon as the state may be donated again.

    Args:
      step: updates done.
      state: arrays, with their shardings.
      certified: monitored certified accuracy, by which the best is chosen.

    Raises:
      CheckpointError: this or the save before it could not be written.
    """
    with self._explained():
      if step in self._manager.all_steps():
        return
      self._manager.wait_until_finished()
      # Read when Orbax has written all of it: one save at a time.
      self._saving = step, manifest.describe_arrays(state)
      # A copy: on CPU Orbax reads the buffers in the background, and the next
      # step donates them.
      state = jax.tree.map(jnp.copy, state)
      self._manager.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics={METRIC: UNMONITORED if certified is None else certified},
      )

  def _write_manifest(self) -> None:
    """Called by Orbax when all is written, before the directory is renamed."""
    if jax.process_index() != 0 or self._saving is None:
      return
    step, arrays = self._saving
    (directory,) = glob.glob(f'{glob.escape(self._path(step))}.orbax-*')
    manifest.write(
      directory, step=step, arrays=arrays, config_hash=self._config_hash
    )

  def restore(self, step: int, abstract_state: Any) -> Any:
    """The state at `step`, laid out as `abstract_state` says.

    Args:
      step: from `choose`.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      CheckpointError: another architecture's or config's checkpoint; names the
        first difference.
    """
    self._manager.wait_until_finished()
    manifest.check_matches(self._path(step), abstract_state, self._config_hash)
    return self._manager.restore(
      step, args=ocp.args.StandardRestore(abstract_state)
    )

  def wait(self) -> None:
    """Until the save in flight is complete.

    Raises:
      CheckpointError: it could not be written.
    """
    with self._explained():
      self._manager.wait_until_finished()

  def close(self) -> int | None:
    """Waits for saves in flight.

    Returns:
      The newest checkpoint's step; None: there is none.

    Raises:
      CheckpointError: the last save could not be written.
    """
    with self._explained():
      self._manager.wait_until_finished()
      newest = self._manager.latest_step()
      self._manager.close()
    return newest

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns what a full or read-only disk raises into one line."""
    try:
      yield
    except errors.UserError:
      raise
    except Exception as error:  # Orbax and TensorStore raise their own kinds.
      known = explain.explain(error)
      if isinstance(known, errors.LostProcessError):
        raise known from error
      raise errors.CheckpointError(
        f'{self._directory}: a checkpoint could not be written '
        f'({explain.quote(error)}); '
        'older ones are intact: make room or permit writing, then start again'
      ) from error
