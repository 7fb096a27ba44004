"""Manifests: the contents of checkpoints, with checksums.

`manifest.json` lists every file of a checkpoint with its size and SHA-256,
every array with its shape and dtype, the hash of the config, and a checksum of
the manifest itself. It is written after all arrays, and before the directory
gets its final name. So a checkpoint without a manifest is not whole.
"""

from collections.abc import Mapping
from concurrent import futures
import hashlib
import json
import math
import os
from typing import Any

from lipnext_jax import files
from lipnext_jax import trees

NAME = 'manifest.json'
COMMITTED = 'commit_success.txt'  # Orbax writes it last; nothing reads it.
# A thread of Orbax may write this after the manifest. Nothing that is restored
# depends on it: it is neither listed nor compared.
METADATA = '_CHECKPOINT_METADATA'
_THREADS = 8  # hashlib releases the interpreter lock; disks like a queue.


def describe_arrays(tree: Any) -> dict[str, list[Any]]:
  """Lists the shape and dtype of every leaf by its path."""
  return {
    name: [list(leaf.shape), str(leaf.dtype)]
    for name, leaf in trees.named_leaves(tree).items()
  }


def hash_fields(fields: Any) -> str:
  """Hashes plain JSON, independently of the order of its fields."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write(
  directory: str, *, arrays: Mapping[str, Any], config_hash: str
) -> None:
  """Writes the manifest of a checkpoint.

  Args:
    directory: directory of the checkpoint, complete but for the manifest.
    arrays: shapes and dtypes from `describe_arrays`.
    config_hash: hash from `hash_fields`.
  """
  names = {*files.walk(directory)} - {METADATA}
  manifest = {
    'config_hash': config_hash,
    'arrays': arrays,
    'files': _measure_all(directory, sorted(names)),
  }
  manifest['own'] = hash_fields(manifest)
  files.write_json(os.path.join(directory, NAME), manifest)


def read(directory: str) -> dict[str, Any]:
  """Reads the manifest of a checkpoint, and verifies its checksum.

  Raises:
    ValueError: the manifest is damaged.
    OSError: the manifest is missing or cannot be read.
  """
  manifest = files.read_json(os.path.join(directory, NAME))
  own = manifest.pop('own', None) if isinstance(manifest, dict) else None
  if own != hash_fields(manifest):
    raise ValueError('its checksum does not match')
  return manifest


def find_damage(directory: str, largest: float = math.inf) -> str | None:
  """Compares the files of a checkpoint with its manifest.

  Args:
    directory: directory of the checkpoint.
    largest: size in bytes above which files are not read.

  Returns:
    A few words on the first difference, or None if there is none.

  Raises:
    OSError: the bucket that holds it cannot be reached.
  """
  try:
    expected = read(directory)['files']
    expected.pop(METADATA, None)  # Earlier versions listed it.
    found = {*files.walk(directory)} - {METADATA}
    wanted = {NAME, COMMITTED, *expected}
    if missing := wanted - found:
      return f'{min(missing)} is missing'
    if extra := found - wanted:
      return f'{min(extra)} does not belong to it'
    names = [name for name in sorted(expected) if expected[name][0] <= largest]
    measured = _measure_all(directory, names)
  except ValueError as error:
    return f'{NAME}: {error}'
  except OSError as error:
    # The network to a bucket may fail, which does not damage a file there.
    if files.is_remote(directory) and not isinstance(error, FileNotFoundError):
      raise
    return str(error)
  for name in names:
    if measured[name] != expected[name]:
      return f'{name} does not match its checksum'
  return None


def _measure_all(directory: str, names: list[str]) -> dict[str, list[Any]]:
  """Returns [size, SHA-256] of each file by its name."""
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    measured = pool.map(lambda name: _measure(directory, name), names)
    return dict(zip(names, measured, strict=True))


def _measure(directory: str, name: str) -> list[Any]:
  """Returns size and SHA-256 of a file."""
  with files.open_binary(os.path.join(directory, name)) as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return [file.tell(), digest]
