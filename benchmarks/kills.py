"""Kills a run again and again: does it end in the numbers of a calm run?

    python -m benchmarks.kills --config=configs/digits.py --kills 50

Runs the command line to its end once, and once more with SIGKILL at random
moments, each time followed by the same command. Every other kill falls into one
of the first saves after a start; the others fall into starting, stepping or
saving. Fails unless final checkpoints and certificates are equal bit for bit.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import runs
from lipnext_jax import checkpoint


def launch(config, workdir):
  """Starts a run that saves often, so that kills meet saves."""
  flag = '--config.checkpoint.every=50 steps'
  return runs.launch(config, workdir, flag, stderr=subprocess.PIPE)


def finish(process):
  """Waits for a run, and exits with its error if it failed."""
  _, stderr = process.communicate()
  if process.returncode:
    sys.exit(f'a run failed: {stderr[-500:]}')


def is_saving(workdir):
  """Returns whether there is a checkpoint without its final name."""
  saved = os.path.join(workdir, 'checkpoints')
  names = os.listdir(saved) if os.path.isdir(saved) else []
  return any('tmp' in name for name in names)


def kill_once(config, workdir, seconds, save):
  """Starts a run, waits and kills it.

  Args:
    config: path of the config.
    workdir: folder of the run.
    seconds: time to wait.
    save: number of the save, from 1, whose beginning the time is counted from;
      0: the time is counted from the start of the run.

  Returns:
    Whether the kill fell into a save; None if the run finished first.
  """
  # Leftovers of the last kill look like a save until this process removes them.
  process, saving = launch(config, workdir), is_saving(workdir)
  stale, seen, begin = saving, 0, time.monotonic()
  while process.poll() is None:
    before, saving = saving, is_saving(workdir)
    stale = stale and saving
    if saving and not before:
      seen, begin = seen + 1, time.monotonic() if save else begin
    if seen >= save and time.monotonic() >= begin + seconds:
      break
    time.sleep(1e-3)
  if process.poll() is None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not stale and is_saving(workdir)
  finish(process)
  return None


def main():
  """Parses the command line, runs both, compares them."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--workdir', help='for both runs; default: a new one')
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--longest', type=float, default=12, help='seconds')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = np.random.default_rng(args.seed)
  folder = args.workdir or tempfile.mkdtemp(prefix='kills-')
  calm, killed = os.path.join(folder, 'calm'), os.path.join(folder, 'killed')
  begin = time.monotonic()
  finish(launch(args.config, calm))
  kills = saving = 0
  while kills < args.kills:
    save = int(rng.integers(1, 6)) if kills % 2 else 0
    # A save of this size takes some 50 ms.
    seconds = rng.uniform(0, 0.05 if save else args.longest)
    during_save = kill_once(args.config, killed, seconds, save)
    if during_save is None:
      print('the run was finished before all kills')
      break
    kills += 1
    saving += during_save
  finish(launch(args.config, killed))
  print(
    f'{kills} kills, {saving} of them during a save; '
    f'{time.monotonic() - begin:.0f} s'
  )
  step, other_step = (
    checkpoint.CheckpointReader(workdir).list_steps()[-1]
    for workdir in (calm, killed)
  )
  arrays = runs.stored_arrays(calm, step)
  if step != other_step or not runs.same_arrays(
    arrays, runs.stored_arrays(killed, step)
  ):
    sys.exit('the final checkpoints DIFFER')
  for name in ('eval.json', 'radii.csv'):
    a, b = (pathlib.Path(workdir, name) for workdir in (calm, killed))
    if a.read_bytes() != b.read_bytes():
      sys.exit(f'{name} DIFFERS')
  print(f'the same, bit for bit: {len(arrays)} arrays at step {step}')


if __name__ == '__main__':
  main()
