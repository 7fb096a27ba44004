"""Files that are written at once or not at all."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
from typing import Any

import numpy as np


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Lets an `OSError` say which file it is about: writing does not.

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


def write_text(path: str, text: str) -> None:
  """Replaces a file as a whole: no kill and no power cut leaves half of it."""
  temporary = f'{path}.tmp'
  with (
    naming(path),
    open(temporary, 'w', encoding='utf-8', newline='') as file,
  ):
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
  """Named arrays as a compressed `.npz`, as a whole."""
  temporary = f'{path}.tmp'
  with naming(path), open(temporary, 'wb') as file:
    np.savez_compressed(file, **arrays)
  os.replace(temporary, path)


def read_json(path: str) -> Any:
  """What a JSON file holds, whoever wrote it.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no JSON, or nests too deeply.
  """
  with open(path, encoding='utf-8') as file:
    try:
      return json.load(file)
    except RecursionError:
      raise ValueError('it nests too deeply') from None


def write_json(path: str, value: Any) -> None:
  """`value` as indented JSON, as a whole."""
  write_text(path, json.dumps(value, indent=2) + '\n')
