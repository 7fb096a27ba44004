"""Writes, reads, compares and hashes the config of a workdir."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.checkpoint import manifest
from lipnext_jax.data import sources

CONFIG_FILE = 'config.json'
# Defaults that runs were made with, before they changed.
_FORMER_DEFAULTS = {'dataset.resize': 256}
_REMEDY = 'name the directory of a training run'


def check_workdir(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Refuses a workdir that holds the run of another config; writes nothing.

  Raises:
    ConfigError: naming the first field that differs, with both values, or an
      address where no workdir can be.
  """
  if files.exists(workdir) and not files.is_folder(workdir):
    raise errors.ConfigError(
      '--workdir', workdir, 'is a file', 'name a directory'
    )
  if not files.exists(os.path.join(workdir, CONFIG_FILE)):
    return
  # A field that is newer than the run had its default.
  stored = config_lib.identity(read_config(workdir))
  for name, value in config_lib.identity(config).items():
    if stored[name] != value:
      raise errors.ConfigError(
        name,
        value,
        f'differs from {stored[name]!r}, with which the run in {workdir} was '
        'made',
        'choose another --workdir or that value',
      )


def hash_config(config: ml_collections.ConfigDict) -> str:
  """Hashes the fields that decide the sequence of states.

  Fields at their defaults are left out, so that a new field keeps the hashes of
  older runs.
  """
  defaults = config_lib.identity(config_lib.default_config())
  own = config_lib.identity(config)
  for name, value in _FORMER_DEFAULTS.items():
    if own[name] == value:
      del own[name]
  return manifest.hash_fields(
    {name: value for name, value in own.items() if value != defaults[name]}
  )


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json from the first process; creates the workdir."""
  if jax.process_index() != 0:
    return
  files.make_folder(workdir)
  files.write_json(
    os.path.join(workdir, CONFIG_FILE), config_lib.build_field_list(config)
  )


def read_config(
  workdir: str, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Reads the config of the run that lives in `workdir`.

  Args:
    workdir: holds a config.json.
    overrides: values of fields that do not decide what was trained
      (`config.Field.free`), {'eval.split': …}, say.

  Raises:
    ConfigError: there is no valid config.json, or an override of a field that
      decided what was trained.
  """
  fields = _read_fields(workdir)
  if fields.get('dataset.name') not in sources.VARYING:
    fields.pop('dataset.resize', None)  # Its former default, which is unread.
  config = config_lib.default_config()
  defaults = config_lib.build_field_list(config)
  fixed = config_lib.identity(config)
  for name, value in (overrides or {}).items():
    if name in fixed:
      raise errors.ConfigError(
        name,
        value,
        f'cannot change what was trained in {workdir}',
        'leave it out',
      )
    fields[name] = value
  for name, value in fields.items():
    if name not in defaults:
      raise errors.ConfigError(
        '--workdir',
        workdir,
        f'has the unknown field {name!r} in its {CONFIG_FILE}',
        'use the version of lipnext_jax that wrote it',
      )
    try:
      config.update_from_flattened_dict({name: _tuples(value)})
    except (TypeError, ValueError, AttributeError, KeyError):
      raise errors.ConfigError(
        name,
        value,
        f'in {os.path.join(workdir, CONFIG_FILE)} is no '
        f'{type(defaults[name]).__name__}',
        _REMEDY,
      ) from None
  config_lib.validate(config)
  return config


def _read_fields(workdir: str) -> dict[str, Any]:
  try:
    fields = files.read_json(os.path.join(workdir, CONFIG_FILE))
    if isinstance(fields, dict):
      return fields
    problem = f'has an unreadable {CONFIG_FILE} (it holds no fields)'
  except FileNotFoundError:
    problem = f'holds no {CONFIG_FILE}'
  except (OSError, ValueError) as error:
    problem = f'has an unreadable {CONFIG_FILE} ({error})'
  raise errors.ConfigError('--workdir', workdir, problem, _REMEDY)


def _tuples(value: Any) -> Any:
  """Turns the lists of JSON back into the tuples of a config."""
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value
