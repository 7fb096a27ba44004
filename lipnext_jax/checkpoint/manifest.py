"""Manifests: list what a checkpoint consists of, with checksums.

`manifest.json` is written into a checkpoint's temporary directory after all of
its arrays and before the directory gets its final name: a checkpoint with a
name has a manifest, and one without is not whole. It lists every file with its
size and SHA-256, every array with its shape and dtype, the hash of the config
that made them, and a checksum of its own.
"""

from collections.abc import Mapping
from concurrent import futures
import functools
import hashlib
import json
import os
import re
from typing import Any

import jax

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.optim import trees

NAME = 'manifest.json'
# Orbax adds the time of commit to the first, and the second, when it gives the
# directory its name, after the manifest.
_METADATA, _COMMITTED = '_CHECKPOINT_METADATA', 'commit_success.txt'
_SUCCESS = 'Checkpoint commit was successful to'
_COMMIT_TIME = 'commit_timestamp_nsecs'
_THREADS = 8  # hashlib releases the interpreter lock; disks like a queue.


def describe_arrays(tree: Any) -> dict[str, list[Any]]:
  """Lists the shape and dtype of every leaf by its path."""
  return {
    trees.path_name(path): [list(leaf.shape), str(leaf.dtype)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def hash_fields(fields: Mapping[str, Any]) -> str:
  """Hashes plain config fields, whatever their order."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write(
  directory: str, *, step: int, arrays: Mapping[str, Any], config_hash: str
) -> None:
  """Lists everything below `directory` in its `manifest.json`, durably.

  Args:
    directory: of one checkpoint, complete but for this file.
    step: number of updates.
    arrays: from `describe_arrays`.
    config_hash: from `hash_fields`.
  """
  names = sorted(files.walk(directory))
  manifest = {
    'step': step,
    'config_hash': config_hash,
    'arrays': arrays,
    'files': dict(zip(names, _measure_all(directory, names), strict=True)),
  }
  manifest['own'] = hash_fields(manifest)
  files.write_json(os.path.join(directory, NAME), manifest)


def read(directory: str) -> dict[str, Any]:
  """Reads the manifest of a checkpoint and verifies its own checksum.

  Raises:
    ValueError: what is wrong with it, in a few words.
    OSError: the bucket that it is in cannot be reached.
  """
  try:
    manifest = files.read_json(os.path.join(directory, NAME))
    own = manifest.pop('own')
  except FileNotFoundError:
    raise ValueError(f'it has no {NAME}') from None
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    if files.may_pass(directory, error):
      raise
    raise ValueError(
      f'its {NAME} cannot be read ({type(error).__name__})'
    ) from None
  if hash_fields(manifest) != own:
    raise ValueError(f'its {NAME} does not have its checksum')
  return manifest


def is_committed(directory: str) -> bool:
  """Returns whether a save came to its end.

  On a disk, the name of the directory says so; in a bucket, Orbax' last file.
  """
  last = os.path.join(directory, _COMMITTED)
  return not files.is_remote(directory) or files.exists(last)


def find_damage(directory: str, largest: int | None = None) -> str | None:
  """Reads a checkpoint again and compares it with its manifest.

  Args:
    directory: of the checkpoint.
    largest: size in bytes of the largest files to read; None: all are read.

  Returns:
    What is not as it was written, in a few words; None if all is.

  Raises:
    OSError: the bucket that it is in cannot be reached.
  """
  try:
    expected = read(directory)['files']
  except ValueError as error:
    return str(error)
  found = set(files.walk(directory)) - {NAME, _COMMITTED}
  if missing := expected.keys() - found:
    return f'{min(missing)} is missing'
  if extra := found - expected.keys():
    return f'{min(extra)} does not belong to it'
  names = [
    n for n in sorted(expected) if largest is None or expected[n][0] <= largest
  ]
  try:
    measured = _measure_all(directory, names)
    with files.open_text(os.path.join(directory, _COMMITTED)) as file:
      committed = file.read()
  except (OSError, ValueError) as error:
    if files.may_pass(directory, error):
      raise
    return f'a file cannot be read ({error})'
  for name, (size, digest) in zip(names, measured, strict=True):
    wanted, checksum = expected[name]
    if size != wanted:
      return f'{name} has {size} bytes instead of {wanted}'
    if digest != checksum:
      return f'{name} does not have its checksum'
  # The directory may have been moved since: only its own name is compared.
  step = os.path.basename(os.path.normpath(directory))
  if not re.fullmatch(f'{_SUCCESS} .*/{step}', committed):
    return f'{_COMMITTED} does not say what it should'
  return None


def _measure_all(directory: str, names: list[str]) -> list[tuple[int, str]]:
  """Returns (size, SHA-256) of each file."""
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(functools.partial(_measure, directory), names))


def _measure(directory: str, name: str) -> tuple[int, str]:
  """Returns size and SHA-256 of a file; Orbax' metadata without the time."""
  with files.open_binary(os.path.join(directory, name)) as file:
    if name != _METADATA:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
      return file.tell(), digest
    data = file.read()
  try:
    fields = json.loads(data)
    fields.pop(_COMMIT_TIME, None)
    data = json.dumps(fields, sort_keys=True).encode()
  except (ValueError, AttributeError):
    pass  # Damaged: the bytes as they are will not have the checksum.
  return len(data), hashlib.sha256(data).hexdigest()


def check_matches(
  directory: str, abstract_state: Any, config_hash: str
) -> None:
  """Refuses a checkpoint of other arrays, or of another config.

  Args:
    directory: of the checkpoint.
    abstract_state: arrays or shapes to be restored.
    config_hash: from `hash_fields`; '' for any config.

  Raises:
    CheckpointError: naming the first difference.
  """
  stored, wanted = read(directory), describe_arrays(abstract_state)
  for name in sorted({*stored['arrays'], *wanted}):
    there, here = (
      _describe(name, arrays.get(name)) for arrays in (stored['arrays'], wanted)
    )
    if there != here:
      raise errors.CheckpointError(
        f'{directory} holds {there}, this config makes {here}: choose another '
        '--workdir'
      )
  if config_hash not in ('', stored['config_hash']):
    raise errors.CheckpointError(
      f'{directory} was made with another config, though its arrays have the '
      'same shapes: choose another --workdir'
    )


def _describe(name: str, array: list[Any] | None) -> str:
  if array is None:
    return f'no {name}'
  shape, dtype = array
  return f'{name} {dtype}{shape}'
