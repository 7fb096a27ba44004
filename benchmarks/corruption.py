"""Damages checkpoints at random: is it found, and the one before used?

    python -m benchmarks.corruption --trials 200

Trains a few steps, damages one file of the newest checkpoint (flips a bit,
zeroes a block, truncates, empties, extends or removes it), and restores as a
resumed run would. Fails if a damaged state is loaded.
"""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np

from benchmarks import runs
from lipnext_jax import checkpoint
from lipnext_jax import config as config_lib
from lipnext_jax import report
from lipnext_jax import train
from lipnext_jax.checkpoint import restore
from lipnext_jax.models import registry

_BLOCK = 512  # Bytes of a disk's block.


def train_briefly(workdir):
  """Trains four steps on digits, with a checkpoint after each."""
  config = config_lib.smoke(config_lib.default_config(), 'smoke')
  config.dataset.name = 'digits'
  config.model.patch_size = 4
  config.duration = '4 steps'
  config.eval.every = '0 steps'
  with contextlib.redirect_stdout(io.StringIO()):
    train.train_and_evaluate(config, workdir)


def damage(path, rng):
  """Damages a file in one of several ways and returns which."""
  data = bytearray(path.read_bytes())
  kinds = ['removed', 'extended']
  if data:
    kinds += ['emptied', 'flipped', 'flipped', 'flipped', 'zeroed', 'truncated']
  kind = kinds[rng.integers(len(kinds))]
  if kind == 'removed':
    path.unlink()
    return kind
  at = int(rng.integers(max(len(data), 1)))
  if kind == 'extended':
    data += bytes(rng.integers(256, size=1 + at % 7, dtype=np.uint8))
  elif kind == 'emptied':
    data.clear()
  elif kind == 'truncated':
    del data[at:]
  elif kind == 'flipped':
    data[at] ^= 1 << int(rng.integers(8))
  else:
    zeros = bytes(len(data[at : at + _BLOCK]))
    # A block that is zero already gets a one.
    changed = zeros if any(data[at : at + _BLOCK]) else b'\x01' + zeros[1:]
    data[at : at + _BLOCK] = changed
  path.write_bytes(bytes(data))
  return kind


def abstract_state(workdir):
  """Returns the shapes and dtypes of the states that a run saves."""
  config = checkpoint.read_config(workdir)
  facts = report.read_data_facts(workdir)
  model = registry.build_model(config.model, facts['num_classes'])
  return restore.abstract_state(config, model, facts)


def main():
  """Parses the command line, runs the trials, prints their outcomes."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--trials', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = np.random.default_rng(args.seed)
  counts: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    original = os.path.join(folder, 'original')
    train_briefly(original)
    abstract = abstract_state(original)
    reader = checkpoint.CheckpointReader(original)
    saved = {
      step: jax.tree.leaves(reader.restore(step, abstract))
      for step in reader.list_steps()
    }
    newest = max(saved)
    for trial in range(args.trials):
      workdir = os.path.join(folder, str(trial))
      shutil.copytree(original, workdir)
      directory = pathlib.Path(workdir, 'checkpoints', str(newest))
      files = sorted(p for p in directory.rglob('*') if p.is_file())
      kind = damage(files[rng.integers(len(files))], rng)
      with contextlib.redirect_stderr(io.StringIO()):
        checkpointer = checkpoint.Checkpointer(workdir)
        step = checkpointer.find_newest() or 0
        state = checkpointer.restore(step, abstract)
        checkpointer.close()
      if not runs.same_arrays(jax.tree.leaves(state), saved[step]):
        sys.exit(f'trial {trial}: a {kind} file was loaded in silence')
      found = step != newest
      result = 'found, the one before used' if found else 'not found, harmless'
      counts[f'{kind}: {result}'] += 1
      shutil.rmtree(workdir)
  for name, count in sorted(counts.items()):
    print(f'{name:<40} {count:>4}')
  total = sum(n for name, n in counts.items() if 'found, the' in name)
  print(f'{"found":<40} {total:>4} of {args.trials}')


if __name__ == '__main__':
  main()
