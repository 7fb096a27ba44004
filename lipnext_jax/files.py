"""Writes files at once or not at all."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import stat
from typing import Any
from typing import BinaryIO
from typing import TextIO

import numpy as np

# Bytes. A manifest of a million files has less.
MAX_JSON = 1 << 28


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Adds the name of a file to an `OSError`, which lacks it when writing.

  >>> with naming('a.json'):
  ...   raise OSError(28, 'No space left on device')
  Traceback (most recent call last):
  OSError: [Errno 28] No space left on device: 'a.json'
  """
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = path
    raise


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
  """Yields a new file that takes the place of `path` when it is complete.

  No kill and no power cut leaves half of it; no link is followed.
  """
  temporary = f'{path}.tmp'
  with contextlib.suppress(FileNotFoundError):
    os.unlink(temporary)
  with naming(path), open(temporary, 'xb') as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_bytes(path: str, data: bytes | bytearray) -> None:
  """Replaces a file by one that holds `data`."""
  with _replacing(path) as file:
    file.write(data)


def write_text(path: str, text: str) -> None:
  """Replaces a file by one that holds `text`."""
  write_bytes(path, text.encode())


def write_json(path: str, value: Any) -> None:
  """Replaces a file by one that holds `value` as indented JSON."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
  """Replaces a file by a compressed `.npz` of named arrays."""
  with _replacing(path) as file:
    np.savez_compressed(file, **arrays)


def append(path: str) -> TextIO:
  """Opens a file for reading and appending.

  Raises:
    OSError: it cannot be opened, or is a link.
  """

  def opener(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)

  return open(path, 'a+', encoding='utf-8', opener=opener)


def read_json(path: str) -> Any:
  """Reads a JSON file that anyone may have written.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no JSON, nests too deeply, or is no file of up to
      `MAX_JSON` bytes.
  """
  found = os.stat(path)  # A pipe would be waited for, a device read for ever.
  if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_JSON:
    raise ValueError('it is no regular file, or too large')
  with open(path, encoding='utf-8') as file:
    try:
      return json.load(file)
    except RecursionError:
      raise ValueError('it nests too deeply') from None
