"""Attacks the certificates of a trained model on its test split.

    python -m lipnext_jax.attacks --workdir=DIR [--certificate=rigorous]

Writes `attack.json` and `attack.npz` into the workdir and prints a table. The
exit code is 5 if a certificate is broken. See docs/attacks.md.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import os
import sys
import time
from typing import Any

import numpy as np

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.attacks import lower_bound
from lipnext_jax.attacks import run as run_lib
from lipnext_jax.attacks import target as target_lib
from lipnext_jax.certify import decimals

with errors.needing_extra('train', __name__):
  from lipnext_jax import report
  from lipnext_jax.checkpoint import restore
  from lipnext_jax.data import sources
  from lipnext_jax.runtime import command


class BrokenCertificateError(errors.UserError):
  """A certificate or the bound Λ is wrong."""

  exit_code = 5


_SETTINGS = run_lib.Settings()
# Flag: (default, smallest value, help).
_NUMBERS = {
  'examples': (0, 0, 'number of examples, from the first on; 0: all'),
  'restarts': (_SETTINGS.restarts, 0, 'restarts of each gradient attack'),
  'steps': (_SETTINGS.steps, 1, 'steps of each gradient attack'),
  'seed': (0, 0, 'seed of every random draw'),
  'batch_size': (target_lib.BATCH_SIZE, 1, 'images in one forward pass'),
}
# Flag: (field of the config that it overrides, its choices).
_OVERRIDES = {
  'certificate': ('eval.certificate', certify.CERTIFICATES),
  'split': ('eval.split', sources.FINAL_SPLITS),
  'checkpoint': ('eval.checkpoint', ('last', 'best')),
  'data_dir': ('dataset.data_dir', None),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags.

  Raises:
    ConfigError: a flag is missing, unknown or out of range.
  """
  parser = command.Parser(
    'python -m lipnext_jax.attacks', __doc__.split('\n')[0]
  )
  add = parser.add_argument
  add('--workdir', required=True, help='workdir of a run of lipnext_jax.main')
  for name, (default, _, meaning) in _NUMBERS.items():
    add(f'--{name}', type=int, default=default, help=meaning)
  for name, (field, choices) in _OVERRIDES.items():
    add(f'--{name}', choices=choices, help=f'instead of {field} of the run')
  flags = parser.parse_args(argv)
  for name, (_, least, _) in _NUMBERS.items():
    value = vars(flags)[name]
    if value < least:
      problem, remedy = 'is out of range', f'choose at least {least}'
      raise errors.ConfigError(f'--{name}', value, problem, remedy)
  return flags


def attack_workdir(flags: argparse.Namespace) -> dict[str, Any]:
  """Attacks the run in a workdir; writes and returns `attack.json`.

  Raises:
    BrokenCertificateError: a certificate or Λ is wrong (after writing).
    ConfigError: the workdir or its data do not exist.
  """
  start = time.perf_counter()
  overrides = {
    field: vars(flags)[name]
    for name, (field, _) in _OVERRIDES.items()
    if vars(flags)[name] is not None
  }
  found = restore.restore(flags.workdir, overrides)
  dataset = sources.load_dataset(found.config.dataset)
  source = sources.final_split(dataset, found.config.eval.split)
  count = min(flags.examples or len(source), len(source))
  examples = [source[i] for i in range(count)]
  images = np.stack([example['image'] for example in examples])
  labels = np.array([int(example['label']) for example in examples])
  names = [errors.printable(n) for n in source.names()[:count]]

  certificate = found.config.eval.certificate
  target = target_lib.TARGETS[certificate](
    found.model, found.params, images, batch_size=flags.batch_size
  )
  epsilons = found.config.eval.epsilons
  ledger = run_lib.attack_target(
    target,
    epsilons,
    run_lib.Settings(restarts=flags.restarts, steps=flags.steps),
    seed=flags.seed,
    log=report.log,
  )
  lower = lower_bound.lipschitz_lower_bound(
    found.model, found.params, target.images, seed=flags.seed
  )
  summary = {
    'step': found.step,
    'split': found.config.eval.split,
    'certificate': certificate,
    'seed': flags.seed,
    **run_lib.summarise(ledger, labels, epsilons),
    'class_names': found.class_names,
    'broken_names': [names[i] for i in np.flatnonzero(ledger.broken) if names],
    'lipschitz_bound': target.lipschitz,
    'lipschitz_lower_bound': lower.backbone,
    'logit_lipschitz_lower_bound': lower.logits,
    'seconds': round(time.perf_counter() - start, 1),
  }
  files.write_arrays(
    os.path.join(flags.workdir, 'attack.npz'),
    run_lib.arrays(ledger, labels)
    | ({'file': np.array(names)} if names else {}),
  )
  files.write_json(os.path.join(flags.workdir, 'attack.json'), summary)
  print_table(summary, found.config.dataset.name, epsilons)
  if files.exists(os.path.join(flags.workdir, 'eval.json')):
    report.log(f'shown in {report.write_page(flags.workdir)}')
  check(summary)
  return summary


def check(summary: Mapping[str, Any]) -> None:
  """Raises BrokenCertificateError for a broken certificate or Λ."""
  if summary['broken']:
    broken = summary.get('broken_names') or summary['broken_ids']
    some = ', '.join(map(str, broken[:5]))
    raise BrokenCertificateError(
      f'{summary["broken"]} of {summary["examples"]} {summary["certificate"]} '
      f'certificates are BROKEN (examples {some}, …): see attack.json'
    )
  lower = max(
    summary['lipschitz_lower_bound'], summary['logit_lipschitz_lower_bound']
  )
  if lower > summary['lipschitz_bound'] + lower_bound.ROUNDING:
    raise BrokenCertificateError(
      f'the Lipschitz bound {summary["lipschitz_bound"]:.9g} is BROKEN: two '
      f'points are driven apart by a factor of {lower:.9g}'
    )


def print_table(
  summary: Mapping[str, Any], name: str, epsilons: Sequence[float] = ()
) -> None:
  """Prints the table of the results.

  Args:
    summary: contents of `attack.json`.
    name: name of the dataset.
    epsilons: reported radii with all digits.
  """
  exact = {f'{e:.6g}': decimals.epsilon_name(e) for e in epsilons}
  print(
    f'{name}, {summary["split"]} split, {summary["certificate"]} certificates '
    'under attack:'
  )
  print(f'  examples                    {summary["examples"]:>10d}')
  print(f'  clean accuracy              {summary["clean"]:>10.2f} %')
  print('  ℓ2 ε       certified   robust (found)   gap   robust in [0, 1]')
  for key, row in summary['epsilons'].items():
    epsilon = exact.get(key, key)
    print(
      f'  {epsilon:<9s} {decimals.down(row["cra"], 2):>8s} % '
      f'{row["robust"]:>13.2f} %'
      f' {row["gap"]:>6.2f} {row["robust_in_box"]:>16.2f} %'
    )
  ratio = summary['least_ratio']
  if ratio is not None:
    print(f'  least distance/radius       {ratio:>10.4f}')
  lower, upper = summary['lipschitz_lower_bound'], summary['lipschitz_bound']
  print(f'  Lipschitz constant, less 1  {lower - 1:>+10.1e} … {upper - 1:+.1e}')
  print(f'  runs at a certified radius  {summary["runs"]:>10d}')
  print(f'  certificates broken         {summary["broken"]:>10d}', flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the attacks; returns the exit code."""

  def run() -> int:
    attack_workdir(parse(argv))
    return 0

  return command.run(run)


if __name__ == '__main__':
  sys.exit(main())
