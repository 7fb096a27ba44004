"""Reads what runs left in a workdir, on disk or in a bucket."""

import json

import jax
import numpy as np

from lipnext_jax import files


def read(workdir, name):
  with files.open_text(f'{workdir}/{name}') as file:
    return file.read()


def read_metrics(workdir):
  """Returns the lines of a run's metrics without what depends on the clock."""
  clock = ('train/images_per_second', 'train/failing')
  lines = map(json.loads, read(workdir, 'metrics.jsonl').splitlines())
  return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def stored_arrays(workdir, step):
  """Returns all arrays of a checkpoint, read without what wrote it."""
  from orbax import checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(f'{workdir}/checkpoints/{step}/default')
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same_arrays(workdir, step, other, other_step):
  """Returns whether two checkpoints hold the same bits."""
  pairs = zip(
    stored_arrays(workdir, step), stored_arrays(other, other_step), strict=True
  )
  return all(np.array_equal(a, b) for a, b in pairs)
