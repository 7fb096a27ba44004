"""The digits config over several seeds: each, the mean and the spread.

    python -m benchmarks.digits_seeds --workdir=runs/seeds

Runs the real command line once per seed (a few minutes each on two cores)
and reads the `eval.json` that it leaves. Flags after `--` go to every run, e.g.
`-- --config.dataset.holdout=144 --config.eval.split=validation`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_seed(config: str, workdir: pathlib.Path, seed: int, flags: list[str]):
  """Trains and certifies one seed; returns (eval.json, seconds)."""
  start = time.perf_counter()
  subprocess.run(
    [
      sys.executable,
      '-m',
      'lipnext_jax.main',
      f'--config={config}',
      f'--workdir={workdir}',
      f'--config.seed={seed}',
      *flags,
    ],
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
  )
  seconds = time.perf_counter() - start
  return json.loads((workdir / 'eval.json').read_text()), seconds


def main() -> None:
  """Prints one row per seed, then mean, standard deviation, minimum."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('flags', nargs='*')
  args = parser.parse_args()

  rows: list[list[float]] = []
  for seed in args.seeds:
    workdir = (args.workdir / str(seed)).resolve()
    result, seconds = run_seed(args.config, workdir, seed, args.flags)
    if not rows:
      print('seed     clean  ' + ''.join(f'CRA@{e:<9s}' for e in result['cra']))
    values = [result['clean'], *result['cra'].values()]
    rows.append(values)
    print(
      f'{seed:<6d}' + ''.join(f'{v:8.2f}     ' for v in values),
      f'{seconds:.0f} s, Λ − 1 = {result["lipschitz_bound"] - 1:.1e}',
      flush=True,
    )
  columns = list(zip(*rows, strict=True))
  for name, statistic in (
    ('mean', statistics.fmean),
    ('std', lambda c: statistics.stdev(c) if len(c) > 1 else 0.0),
    ('min', min),
    ('max', max),
  ):
    print(f'{name:<6s}' + ''.join(f'{statistic(c):8.2f}     ' for c in columns))


if __name__ == '__main__':
  main()
