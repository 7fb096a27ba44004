"""Runs many tiny steps: do memory, orthogonality error or step time grow?

    python -m benchmarks.soak --steps 100000 --window 10000

Runs the command line, with its log lines, evaluations and checkpoints, and
reads its memory from outside once per window of steps. Compares the last window
with the second. Fails if the memory grows by more than 1 MiB per 10,000 steps
(least squares), the orthogonality error doubles, or a step takes 1.2 times as
much processor time.
"""

import argparse
import json
import os
import sys
import tempfile
import time

import numpy as np
import psutil

from benchmarks import runs

# Number of each per window.
_LOGS, _EVALUATIONS, _CHECKPOINTS = 100, 2, 5


def launch(workdir, steps, window, stderr):
  """Starts a run of tiny steps.

  Its stderr must be a file: a pipe that nobody empties would stop the run.
  """
  fields = {
    'duration': f'{steps} steps',
    'batch_size': 8,
    'model.depth': 2,
    'model.width': 16,
    'model.patch_size': 4,
    'augment.warp': 0.0,
    'optimizer.warmup': '100 steps',
    'optimizer.learning_rate': 1e-3,
    'log.every': f'{max(1, window // _LOGS)} steps',
    'eval.every': f'{max(1, window // _EVALUATIONS)} steps',
    'eval.monitor_examples': 64,
    'checkpoint.every': f'{max(1, window // _CHECKPOINTS)} steps',
  }
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  return runs.launch('configs/digits.py', workdir, *flags, stderr=stderr)


def read_metrics(workdir):
  """Returns the log lines so far, without one that is being written."""
  try:
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      lines = [line for line in file if line.endswith('\n')]
  except FileNotFoundError:
    return []
  return [m for m in map(json.loads, lines) if 'train/skipped_steps' in m]


def follow(process, workdir, window, seconds):
  """Watches a run; returns {window: (resident MiB, processor s, step)}."""
  running = psutil.Process(process.pid)
  seen: dict[int, tuple[float, float, int]] = {}
  while process.poll() is None:
    metrics = read_metrics(workdir)
    step = metrics[-1]['step'] if metrics else 0
    if step >= window and step // window not in seen:
      try:
        resident = running.memory_info().rss / 2**20
        spent = running.cpu_times()
      except psutil.NoSuchProcess:
        break
      seen[step // window] = resident, spent.user + spent.system, step
    time.sleep(seconds)
  return seen


def judge(seen, metrics, window):
  """Prints the windows; returns what is wrong with them, or None."""
  rows = []
  print('  steps   resident MiB   orthogonality error   processor ms per step')
  for at, (memory, spent, step) in sorted(seen.items()):
    logged = [m for m in metrics if at - 1 < m['step'] / window <= at]
    error = max(m['train/orthogonality_error'] for m in logged)
    before = seen.get(at - 1)
    each = float('nan')  # The first window includes compilation.
    if before is not None:
      each = 1e3 * (spent - before[1]) / (step - before[2])
    rows.append((step, memory, error, each))
    print('{:>7d} {:>14.1f} {:>21.1e} {:>23.3f}'.format(*rows[-1]))
  if len(rows) < 4:
    return 'too few windows were seen: raise --window or lower --every'
  steps, memory, errors, times = np.array(rows[1:]).T
  slope = np.polyfit(steps / 10_000, memory, 1)[0]
  print(
    f'memory {slope:+.2f} MiB per 10,000 steps; orthogonality error '
    f'{errors[-1] / errors[0]:.2f} times that of the second window, time '
    f'{times[-1] / times[0]:.2f} times'
  )
  if slope > 1:
    return 'memory GROWS'
  if errors[-1] > 2 * errors[0]:
    return 'the matrices DRIFT'
  if times[-1] > 1.2 * times[0]:
    return 'it gets SLOWER'
  return None


def main():
  """Parses the command line, runs, prints the windows, judges."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=100_000)
  parser.add_argument('--window', type=int, default=10_000)
  parser.add_argument('--workdir', help='of the run; default: a new one')
  parser.add_argument(
    '--every', type=float, default=1.0, help='seconds between looks'
  )
  args = parser.parse_args()
  workdir = args.workdir or tempfile.mkdtemp(prefix='soak-')
  begin = time.monotonic()
  with tempfile.TemporaryFile('w+') as stderr:
    process = launch(workdir, args.steps, args.window, stderr)
    seen = follow(process, workdir, args.window, args.every)
    if process.wait():
      stderr.seek(0)
      sys.exit(f'the run failed: {stderr.read()[-500:]}')
  verdict = judge(seen, read_metrics(workdir), args.window)
  print(f'{time.monotonic() - begin:.0f} s')
  sys.exit(verdict)


if __name__ == '__main__':
  main()
