"""Files that are written at once or not at all."""

import json
import os
from typing import Any


def write_text(path: str, text: str) -> None:
  """Replaces a file as a whole: no kill and no power cut leaves half of it."""
  temporary = f'{path}.tmp'
  with open(temporary, 'w', encoding='utf-8', newline='') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
  """`value` as indented JSON, as a whole."""
  write_text(path, json.dumps(value, indent=2) + '\n')
