"""Reads what runs left in a workdir, on disk or in a bucket."""

import json

from lipnext_jax import files


def read(workdir, name):
  with files.open_text(f'{workdir}/{name}') as file:
    return file.read()


def read_metrics(workdir):
  """Returns the lines of a run's metrics without what depends on the clock."""
  clock = ('train/images_per_second', 'train/failing')
  lines = map(json.loads, read(workdir, 'metrics.jsonl').splitlines())
  return [{k: v for k, v in line.items() if k not in clock} for line in lines]
