"""Files that are written at once or not at all."""

from collections.abc import Mapping
import json
import os
from typing import Any

import numpy as np


def write_text(path: str, text: str) -> None:
  """Replaces a file as a whole: no kill and no power cut leaves half of it."""
  temporary = f'{path}.tmp'
  with open(temporary, 'w', encoding='utf-8', newline='') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_arrays(path: str, arrays: Mapping[str, Any]) -> None:
  """Named arrays as a compressed `.npz`, as a whole."""
  temporary = f'{path}.tmp'
  with open(temporary, 'wb') as file:
    np.savez_compressed(file, **arrays)
  os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
  """`value` as indented JSON, as a whole."""
  write_text(path, json.dumps(value, indent=2) + '\n')
