"""Trains the rows of a comparison through the command line, several seeds each.

    taskset -c 0 python -m benchmarks.compare models --workdir=runs/compare \
      --seconds=300 -- --config.dataset.data_dir=/data
    python -m benchmarks.compare models --workdir=runs/compare --table

Groups of rows on Fashion-MNIST: `shipped`, its config; `models`, LipNeXt with
both ends, its baselines and a map, of equal size; `ablations`, of LipNeXt. The
group `digits` is the config of that name. Rows train for as long as their
config says, or for `--seconds` each, compilation and certification apart: a
short run measures how many steps that is. Every run has a workdir, so the same
command goes on where it stopped. Flags after `--` go to every run, e.g. to
choose rates: `--config.dataset.holdout=5000 --config.eval.split=validation`.
"""

import argparse
from collections.abc import Mapping
import json
import pathlib
import re
import statistics
import sys

import numpy as np
from scipy import stats

from benchmarks import runs
from benchmarks import timing

FASHION = 'configs/fashion_mnist.py'
QUICK = f'{FASHION}:quick'
_POOLED = {'model.pool': 'l2', 'model.neck_width': 256, 'model.neck_depth': 0}
_MINUTES = {'loss.logit_scale': 2.67}  # The best τ of LipNeXt's short runs.
_MODELS: dict[str, tuple[str, Mapping[str, object]]] = {
  'lipnext, neck': (FASHION, _MINUTES),
  'lipnext, L2 pool': (
    FASHION,
    {
      **_POOLED,
      **_MINUTES,
      'model.patch_size': 7,
      'model.depth': 8,
      'model.width': 208,
    },
  ),
  'lipnext, Cholesky': (
    FASHION,
    {
      **_MINUTES,
      'model.parametrization': 'cholesky',
      'optimizer.learning_rate': 6e-3,
    },
  ),
  'liresnet': (f'{FASHION}:model=liresnet', {}),
  'bronet': (f'{FASHION}:model=bronet', {}),
}
_ABLATIONS: dict[str, Mapping[str, object]] = {
  'as shipped': {},
  'α = 0': {'model.shift_ratio': 0.0},
  'α = 1/8': {'model.shift_ratio': 1 / 8},
  'α = 1/4': {'model.shift_ratio': 1 / 4},
  'L2 pool': _POOLED,
  'L2 pool, α = 0': {**_POOLED, 'model.shift_ratio': 0.0},
  'no dense layers': {'model.neck_depth': 0},
  'zero padding': {'model.padding': 'zero'},
  'no position': {'model.position': False},
  'M Haar': {'model.m_init': 'haar'},
  'R identity': {'model.r_init': 'identity'},
  'lookahead': {'optimizer.lookahead_period': 6},
  'exact exponential': {'optimizer.exponential': 'exact'},
}

# Group → row → the config, and what is changed in it.
ROWS: dict[str, dict[str, tuple[str, Mapping[str, object]]]] = {
  'shipped': {'lipnext': (FASHION, {})},
  'digits': {'lipnext': ('configs/digits.py', {})},
  'models': _MODELS,
  'ablations': {row: (QUICK, changed) for row, changed in _ABLATIONS.items()},
}


def run_row(args: argparse.Namespace, name: str) -> None:
  """Trains and certifies a row with every seed that is not finished.

  If it has `--seconds`, a run of two epochs measures first how many steps it
  takes in this time: images are decoded in the first epoch, and the second is
  as fast as all that would follow.
  """
  config, fields = ROWS[args.group][name]
  folder = args.workdir / args.group / re.sub(r'\W+', '_', name)

  def train(workdir: pathlib.Path, **changed: object) -> None:
    given = {**fields, **changed}.items()
    flags = [f'--config.{field}={value}' for field, value in given]
    if code := runs.launch(config, workdir, *flags, *args.flags).wait():
      sys.exit(code)

  duration = {}
  if args.seconds:
    steps = folder / 'steps.txt'
    if not steps.exists():
      short = {
        'duration': '2 epochs',
        'optimizer.warmup': '1 steps',
        'log.every': '10 steps',
        'eval.every': '0 steps',
      }
      train(folder / 'pace', **short)
      lines = (folder / 'pace' / 'metrics.jsonl').read_text().splitlines()
      rates = [json.loads(s)['train/images_per_second'] for s in lines]
      pace = statistics.median(rates[len(rates) // 2 :])
      text = (folder / 'pace' / 'config.json').read_text()
      batch = json.loads(text)['batch_size']
      steps.write_text(str(max(2, round(args.seconds * pace / batch))))
    total = int(steps.read_text())
    duration = {
      'duration': f'{total} steps',
      'optimizer.warmup': f'{max(1, total // 10)} steps',
    }
  for seed in args.seeds:
    workdir = folder / f'seed_{seed}'
    if not (workdir / 'eval.json').exists():
      train(workdir, seed=seed, **duration)
      print(f'{name}, seed {seed}: {(workdir / "eval.json")}', flush=True)


def print_table(args: argparse.Namespace) -> None:
  """Prints mean ± standard deviation over the seeds, as Markdown.

  The last line has the 95 % interval of a mean (Student's t).
  """
  head: list[str] = []
  rows, counts = [], set()
  for name in ROWS[args.group]:
    folder = args.workdir / args.group / re.sub(r'\W+', '_', name)
    found = sorted(folder.glob('seed_*/eval.json'))
    if not found:
      continue
    results = [json.loads(path.read_text()) for path in found]
    head = ['row', 'parameters', 'seeds', 'steps', 'clean']
    head += [f'CRA@{radius}' for radius in results[0]['cra']] + ['Λ − 1']
    text = found[0].with_name('parameters.txt').read_text()
    stored = re.search(r'parameters stored: ([\d,]+)', text)
    cells = [name, stored[1] if stored else '', len(results)]
    cells.append(results[0]['step'])
    columns = [[run['clean'], *run['cra'].values()] for run in results]
    for values in np.transpose(columns):
      cell = f'{np.mean(values):.2f}'
      if len(values) > 1:
        cell += f' ± {np.std(values, ddof=1):.2f}'
      cells.append(cell)
    counts.add(len(results))
    cells.append(f'{max(run["lipschitz_bound"] for run in results) - 1:.1e}')
    rows.append(cells)
  if not rows:
    return
  timing.table(head, rows)
  for n in sorted(counts - {1}):
    width = stats.t.ppf(0.975, n - 1) / n**0.5
    print(
      f'95 % interval of a mean of {n} seeds: ± {width:.2f} standard deviations'
    )


def main() -> None:
  """Runs what is not finished yet, or prints what is."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('group', choices=ROWS)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--only', nargs='+', help='rows; all by default')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument(
    '--seconds', type=float, default=0.0, help="in the place of a config's own"
  )
  parser.add_argument('--table', action='store_true', help='print, run nothing')
  # `argparse` takes no flags after `--` beside a positional argument.
  own, flags = sys.argv[1:], []
  if '--' in own:
    own, flags = own[: own.index('--')], own[own.index('--') + 1 :]
  args = parser.parse_args(own, argparse.Namespace(flags=flags))
  args.workdir = args.workdir.resolve()
  if args.table:
    print_table(args)
    return
  for name in args.only or ROWS[args.group]:
    run_row(args, name)


if __name__ == '__main__':
  main()
