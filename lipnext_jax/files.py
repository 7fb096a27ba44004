"""Reads and atomically writes files on a disk or in a bucket.

A path may be an address, `gs://bucket/runs/x`. In a bucket, writing an object
is atomic, and folders need not be made and cannot be renamed.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import io
import itertools
import json
import os
import re
from typing import Any
from typing import TextIO

import numpy as np

from lipnext_jax import errors


def is_remote(path: str) -> bool:
  """Returns whether a path is an address, such as gs://bucket/runs/x."""
  return '://' in os.fspath(path)


def _store(path: str) -> Any:
  """Returns the fsspec file system of an address; refuses all but gs://."""
  if not re.match('gs://[^/]', path):
    raise errors.ConfigError(
      '--workdir',
      path,
      'is not a path or an address of a bucket',
      'name a directory or gs://BUCKET/FOLDER; other storage can be mounted '
      'where all processes see it',
    )
  try:
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise errors.ConfigError(
      '--workdir',
      path,
      f'needs a package that is not installed ({error.name})',
      f'in a clone of the repository: {errors.install_command("gcs")}',
    ) from None
  # A cached listing would lack what TensorStore has written since. The setting
  # also reaches epath, through which Orbax writes.
  for name in ('gs', 'gcs'):
    fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  return fsspec.filesystem('gcs', finalize_on_close=True)


def exists(path: str) -> bool:
  """Returns whether a file or folder exists."""
  return _store(path).exists(path) if is_remote(path) else os.path.exists(path)


def make_folder(path: str) -> None:
  """Makes a folder and its parents; a bucket needs none."""
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def list_folder(path: str) -> list[str]:
  """Lists the names in a folder; none if it does not exist."""
  if not exists(path):
    return []
  if is_remote(path):
    return [os.path.basename(p) for p in _store(path).ls(path, detail=False)]
  return os.listdir(path)


def walk(folder: str) -> Iterator[str]:
  """Yields the names of all files below a folder, relative to it."""
  if is_remote(folder):
    for name in _store(folder).find(folder):
      yield os.path.relpath(f'gs://{name}', folder)
    return
  for parent, _, names in os.walk(folder):
    for path in (os.path.join(parent, name) for name in names):
      if os.path.isfile(path):  # Reading a pipe or a device never ends.
        yield os.path.relpath(path, folder)


def move_aside(folder: str, parent: str) -> str:
  """Moves a folder to PARENT/NAME-0, or the next number; returns the new path.

  In a bucket it is copied, then removed: a kill in between leaves both.
  """
  name = os.path.basename(folder)
  targets = (f'{parent}/{name}-{i}' for i in itertools.count())
  target = next(path for path in targets if not exists(path))
  if is_remote(folder):
    store = _store(folder)
    store.copy(f'{folder}/', f'{target}/', recursive=True)
    store.rm(folder, recursive=True)
  else:
    os.makedirs(parent, exist_ok=True)
    os.rename(folder, target)
  return target


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Adds the path to an `OSError` that lacks it, as those of writing do."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = path
    raise


def write_bytes(path: str, data: bytes | bytearray) -> None:
  """Writes a file of bytes that appears, or replaces another, at once.

  A kill or a power cut never leaves half a file. Links are not followed.
  """
  if is_remote(path):
    _store(path).pipe_file(path, bytes(data))
    return
  temporary = f'{path}.tmp'
  with contextlib.suppress(FileNotFoundError):
    os.unlink(temporary)
  with naming(path), open(temporary, 'xb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_text(path: str, text: str) -> None:
  """Writes a UTF-8 file atomically."""
  write_bytes(path, text.encode())


def write_json(path: str, value: Any) -> None:
  """Writes a file of indented JSON atomically."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
  """Writes a compressed `.npz` of named arrays atomically."""
  data = io.BytesIO()
  np.savez_compressed(data, **arrays)
  write_bytes(path, data.getvalue())


class _Object(io.StringIO):
  """A text file in a bucket; every flush writes all of it anew."""

  def __init__(self, path: str):
    super().__init__()
    self.name = path
    if exists(path):
      with open_text(path) as file:
        self.write(file.read())

  def flush(self) -> None:
    write_text(self.name, self.getvalue())

  def close(self) -> None:
    try:
      if not self.closed:
        self.flush()
    finally:
      super().close()


def append(path: str) -> TextIO:
  """Opens a text file for reading and appending, line by line.

  In a bucket, lines appear when the file is flushed.

  Raises:
    OSError: the file cannot be opened, or is a link.
  """
  if is_remote(path):
    return _Object(path)
  return open(
    path,
    'a+',
    buffering=1,
    encoding='utf-8',
    opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666),
  )


def open_binary(path: str) -> io.BufferedReader:
  """Opens a binary file for reading."""
  return _store(path).open(path, 'rb') if is_remote(path) else open(path, 'rb')


def open_text(path: str, **options: Any) -> TextIO:
  """Opens a UTF-8 file for reading, with options of `io.TextIOWrapper`."""
  return io.TextIOWrapper(open_binary(path), encoding='utf-8', **options)


def read_json(path: str) -> Any:
  """Reads a JSON file.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is not JSON.
  """
  with open_binary(path) as file:
    return json.load(file)
