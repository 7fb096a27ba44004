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
DAMAGED = 'damaged'  # Where checkpoints go that do not verify.
_METRIC = 'certified'  # What 'best' means: larger is better, in per cent.
_UNMONITORED = -1.0  # Of a checkpoint between evaluations: below any other.
_SMALL = 1 << 16  # Bytes; metrics have less, arrays (those that matter) more.


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


class Checkpointer:
  """Saves, verifies and restores train states under `workdir/checkpoints`."""

  def __init__(
    self, workdir: str, *, create: bool = True, config_hash: str = ''
  ):
    """Opens the directory; without `create` it must exist already.

    Args:
      workdir: of the run.
      create: whether a directory may be made, and unfinished saves removed.
      config_hash: of what decides the states saved here; see `hash_config`.

    Raises:
      ConfigError: there is nothing to restore and nothing may be created.
    """
    self._workdir = workdir
    self._directory = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    self._config_hash = config_hash
    self._saving: tuple[int, dict[str, Any]] | None = None
    if not create and not os.path.isdir(self._directory):
      raise self._missing(None)
    # Orbax reads all metrics at once: small files are verified before it.
    distributed.on_first(self._set_aside_damaged_metrics)
    keep = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(2),
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[_METRIC],
          n=1,
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=lambda metrics: metrics[_METRIC],
        create=create,
        cleanup_tmp_directories=create,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_manifest
        ),
      ),
    )

  def choose(self, which: str | None) -> int | None:
    """The step to restore: the newest (or best) whose every byte is as written.

    Damaged checkpoints that are met on the way are set aside, into
    `workdir/damaged/`, with a message.

    Args:
      which: 'last', 'best' (by monitored certified accuracy), or None: the
        last if there is one.

    Raises:
      ConfigError: a checkpoint was asked for that is not there.
      CheckpointError: there were checkpoints, and all of them are damaged.
    """
    self._manager.wait_until_finished()
    while (step := self._candidate(which)) is not None:
      if not distributed.on_first(
        functools.partial(self._set_aside_damaged, step)
      ):
        return step
      self._manager.reload()
    folder = os.path.join(self._workdir, DAMAGED)
    if not self._manager.all_steps() and os.path.isdir(folder):
      raise errors.CheckpointError(
        f'{self._workdir} holds only damaged checkpoints, now in {folder}; put '
        'a good copy back, or remove that folder to start again'
      )
    if which is not None:
      raise self._missing(which)
    return None

  def _candidate(self, which: str | None) -> int | None:
    if which != 'best':
      return self._manager.latest_step()
    step = self._manager.best_step()
    if step is None or self._manager.metrics(step)[_METRIC] == _UNMONITORED:
      return None
    return step

  def _set_aside_damaged_metrics(self) -> int:
    """Sets all checkpoints aside whose small files are damaged; how many."""
    if not os.path.isdir(self._directory):
      return 0
    steps = [int(s) for s in os.listdir(self._directory) if s.isdigit()]
    return sum(self._set_aside_damaged(step, _SMALL) for step in sorted(steps))

  def _set_aside_damaged(self, step: int, largest: int | None = None) -> int:
    """Verifies a checkpoint; 1 if it was damaged and set aside, else 0."""
    damage = manifest.find_damage(self._path(step), largest)
    if damage is None:
      return 0
    folder = os.path.join(self._workdir, DAMAGED)
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, f'{step}-{len(os.listdir(folder))}')
    os.rename(self._path(step), target)
    print(
      f'checkpoint {step} is damaged ({damage}): set aside as {target}',
      file=sys.stderr,
      flush=True,
    )
    return 1

  def _path(self, step: int) -> str:
    return os.path.join(self._directory, str(step))

  def _missing(self, which: str | None) -> errors.ConfigError:
    return errors.ConfigError(
      '--workdir',
      self._workdir,
      'holds no checkpoint to evaluate' + (f' ({which})' if which else ''),
      'train there first (--mode=train)',
    )

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
        metrics={_METRIC: _UNMONITORED if certified is None else certified},
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
    stored = manifest.read(self._path(step))
    wanted = manifest.describe_arrays(abstract_state)
    for name in sorted({*stored['arrays'], *wanted}):
      there, here = stored['arrays'].get(name), wanted.get(name)
      if there != here:
        raise errors.CheckpointError(
          f'{self._path(step)} holds {_describe(name, there)}, this config '
          f'makes {_describe(name, here)}: choose another --workdir'
        )
    if self._config_hash not in ('', stored['config_hash']):
      raise errors.CheckpointError(
        f'{self._path(step)} was made with another config, though its arrays '
        'have the same shapes: choose another --workdir'
      )
    return self._manager.restore(
      step, args=ocp.args.StandardRestore(abstract_state)
    )

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


def _describe(name: str, array: list[Any] | None) -> str:
  if array is None:
    return f'no {name}'
  shape, dtype = array
  return f'{name} {dtype}{shape}'
