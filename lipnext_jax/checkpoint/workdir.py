"""Config and lock of a workdir."""

from collections.abc import Mapping
import os
import socket
import sys
import time
from typing import Any

import filelock
import jax
import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.checkpoint import manifest
from lipnext_jax.runtime import command

CONFIG_FILE = 'config.json'
# Seconds after which another host must see a new file. NFS clients cache
# directories for up to 60 (acdirmax in nfs(5)).
_VISIBLE = 90


def check_workdir(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Checks that a workdir is new, or holds a run of this config.

  Raises:
    ConfigError: a field differs from that of the run, or the workdir is not a
      directory.
  """
  # `exists` refuses addresses of unknown storage, by the name that was given.
  if files.exists(workdir) and os.path.isfile(workdir):
    raise errors.ConfigError(
      '--workdir', workdir, 'is a file', 'name a directory'
    )
  if not files.exists(os.path.join(workdir, CONFIG_FILE)):
    return
  # `read_config` gives fields that are newer than the run their defaults.
  stored = config_lib.fixed_fields(read_config(workdir))
  for name, value in config_lib.fixed_fields(config).items():
    if stored[name] != value:
      raise errors.ConfigError(
        name,
        value,
        f'differs from {stored[name]!r}, with which the run in {workdir} was '
        'made',
        'choose another --workdir or that value',
      )


def hash_config(config: ml_collections.ConfigDict) -> str:
  """Hashes the fields that determine the weights.

  Fields at their defaults are left out, so that a new field does not change the
  hashes of older runs.
  """
  defaults = config_lib.fixed_fields(config_lib.default_config())
  own = config_lib.fixed_fields(config)
  return manifest.hash_fields(
    {name: value for name, value in own.items() if value != defaults[name]}
  )


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json in the first process; creates the workdir if needed."""
  if jax.process_index() != 0:
    return
  files.make_folder(workdir)
  files.write_json(
    os.path.join(workdir, CONFIG_FILE), config_lib.flatten(config)
  )


def read_config(
  workdir: str, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Reads the config of the run in `workdir`.

  Args:
    workdir: directory with a config.json.
    overrides: values of free fields (`config.Field.free`), which do not
      determine the weights, such as {'eval.split': 'validation'}.

  Raises:
    ConfigError: config.json is missing or malformed, or an override is of a
      field that is not free.
  """
  try:
    fields = {**files.read_json(os.path.join(workdir, CONFIG_FILE))}
  except (OSError, ValueError, TypeError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'holds no {CONFIG_FILE} that can be read ({command.quote(error)})',
      'name the directory of a training run',
    ) from None
  if fields.get('model.remat') == 'none':  # The default of earlier versions.
    del fields['model.remat']
  overrides = overrides or {}
  config = config_lib.default_config()
  for name, value in {**fields, **overrides}.items():
    if name not in config_lib.FIELDS:
      raise errors.ConfigError(
        '--workdir',
        workdir,
        f'has the unknown field {name!r} in its {CONFIG_FILE}',
        'use the version of lipnext_jax that wrote it',
      )
    if name in overrides and not config_lib.FIELDS[name].free:
      raise errors.ConfigError(
        name,
        value,
        f'cannot change what was trained in {workdir}',
        'leave it out',
      )
    value = _tuples(value)
    config_lib.FIELDS[name].check(name, value)
    config.update_from_flattened_dict({name: value})
  config_lib.validate(config)
  return config


def _tuples(value: Any) -> Any:
  """Turns the lists of JSON back into the tuples of a config."""
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value


class Lock:
  """A lock held from `acquire` to `release` or the end of the process.

  The kernel releases it however the process ends. A process that holds the
  lock may take it again. A bucket cannot be locked: there, a message names the
  last run that started.
  """

  def __init__(self, workdir: str):
    """Does not take the lock yet."""
    self._workdir = workdir
    self._holder = os.path.join(workdir, 'lock.txt')
    self._lock = filelock.FileLock(
      os.path.join(workdir, 'lock'), thread_local=False, is_singleton=True
    )

  def acquire(self) -> int:
    """Takes the lock; creates the workdir if needed.

    Returns:
      The id of this process, for `check_seen`.

    Raises:
      ConfigError: another process holds the lock.
      OSError: the workdir cannot be written.
    """
    files.make_folder(self._workdir)
    if files.is_remote(self._workdir):
      print(
        f'{self._workdir} cannot be locked: make sure that no other run uses '
        f'it (the last to start was {self._read_holder() or "none"})',
        file=sys.stderr,
      )
    else:
      try:
        self._lock.acquire(blocking=False)
      except filelock.Timeout:
        raise errors.ConfigError(
          '--workdir',
          self._workdir,
          f'is in use by {self._read_holder() or "another process"}',
          'wait for it, stop it, or choose another directory',
        ) from None
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    own = f'process {os.getpid()} on {socket.gethostname()} since {since}'
    files.write_text(self._holder, own)
    return os.getpid()

  def release(self) -> None:
    """Releases the lock, if it is held."""
    self._lock.release(force=True)

  def check_seen(self, holder: int, seconds: float = _VISIBLE) -> None:
    """Checks that this process sees the lock of the first process of its run.

    Args:
      holder: process id that `acquire` returned in the first process.
      seconds: longest time to wait for the file.

    Raises:
      ConfigError: the workdir of this process is another directory.
    """
    end = time.monotonic() + seconds
    while not self._read_holder().startswith(f'process {holder} on '):
      if time.monotonic() > end:
        raise errors.ConfigError(
          '--workdir',
          self._workdir,
          f'is not shared: {socket.gethostname()} does not see the lock of the '
          'first process',
          'name a directory on storage that all hosts have mounted',
        )
      time.sleep(0.1)

  def _read_holder(self) -> str:
    """Reads who took the lock last; '' if nobody did."""
    try:
      with files.open_text(self._holder) as file:
        return file.read()
    except OSError:
      return ''
