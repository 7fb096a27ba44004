"""The command line of the attacks.

    python -m lipnext_jax.attacks --workdir=DIR [--certificate=rigorous]

Tries to break the certificates of a trained model on its test split. Writes
`attack.json` and `attack.npz` into the workdir, prints a table, and fails
loudly (exit code 5) if a single certificate is broken. See docs/attacks.md.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import os
import sys
import time
from typing import Any

import numpy as np

from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import files
from lipnext_jax import report
from lipnext_jax.attacks import lower_bound
from lipnext_jax.attacks import run as run_lib
from lipnext_jax.attacks import target as target_lib
from lipnext_jax.checkpoint import restore
from lipnext_jax.data import sources
from lipnext_jax.runtime import command


class BrokenCertificateError(errors.UserError):
  """A promise was made that does not hold."""

  exit_code = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags of the command line.

  Raises:
    ConfigError: flags that are missing, unknown or out of range.
  """
  defaults = run_lib.Settings()
  parser = command.Parser(
    'python -m lipnext_jax.attacks',
    'Tries to break the certificates of a trained model.',
  )
  add = parser.add_argument
  add('--workdir', required=True, help='of a run of lipnext_jax.main')
  add(
    '--certificate',
    choices=evaluate.CERTIFICATES,
    help='which certificates; by default those of eval.certificate',
  )
  add('--examples', type=int, default=0, help='only the first so many; 0: all')
  add(
    '--restarts',
    type=int,
    default=defaults.restarts,
    help='of each gradient attack, with and without pixels in [0, 1]',
  )
  add('--steps', type=int, default=defaults.steps, help='of each attack')
  add('--seed', type=int, default=0, help='of every random draw')
  add('--batch_size', type=int, default=target_lib.BATCH_SIZE)
  add('--split', choices=sources.FINAL_SPLITS, help='instead of eval.split')
  add(
    '--checkpoint', choices=('last', 'best'), help='instead of eval.checkpoint'
  )
  add('--data_dir', help='instead of dataset.data_dir')
  flags = parser.parse_args(argv)
  for name, least in (
    ('examples', 0), ('restarts', 0), ('steps', 1), ('seed', 0),
    ('batch_size', 1),
  ):  # fmt: skip
    value = vars(flags)[name]
    if value < least:
      raise errors.ConfigError(
        f'--{name}', value, 'is out of range', f'choose at least {least}'
      )
  return flags


def attack_workdir(flags: argparse.Namespace) -> dict[str, Any]:
  """Restores, attacks, writes both files; returns what `attack.json` holds.

  Raises:
    BrokenCertificateError: after writing, if a certificate or Λ is wrong.
    ConfigError: the workdir or its data are not there.
  """
  start = time.perf_counter()
  overrides = {
    field: value
    for field, value in (
      ('eval.split', flags.split),
      ('eval.checkpoint', flags.checkpoint),
      ('eval.certificate', flags.certificate),
      ('dataset.data_dir', flags.data_dir),
    )
    if value is not None
  }
  found = restore.restore(flags.workdir, overrides)
  dataset = sources.load_dataset(found.config.dataset)
  source = sources.final_split(dataset, found.config.eval.split)
  count = min(flags.examples or len(source), len(source))
  examples = [source[i] for i in range(count)]
  images = np.stack([example['image'] for example in examples])
  labels = np.array([int(example['label']) for example in examples])
  ids = np.arange(count)

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
    say=report.log,
  )
  lower = lower_bound.lipschitz_lower_bound(
    found.model, found.params, target.images, seed=flags.seed
  )
  summary = {
    'step': found.step,
    'split': found.config.eval.split,
    'certificate': certificate,
    'seed': flags.seed,
    **run_lib.summarise(ledger, ids, labels, epsilons),
    'lipschitz_bound': target.lipschitz,
    'lipschitz_lower_bound': lower.backbone,
    'logit_lipschitz_lower_bound': lower.logits,
    'seconds': round(time.perf_counter() - start, 1),
  }
  files.write_arrays(
    os.path.join(flags.workdir, 'attack.npz'),
    run_lib.arrays(ledger, ids, labels),
  )
  files.write_json(os.path.join(flags.workdir, 'attack.json'), summary)
  print_table(summary, found.config.dataset.name)
  if os.path.exists(os.path.join(flags.workdir, 'eval.json')):
    report.log(f'shown in {report.write_page(flags.workdir)}')
  check(summary)
  return summary


def check(summary: Mapping[str, Any]) -> None:
  """Raises if anything that was promised turned out wrong.

  Raises:
    BrokenCertificateError: a broken certificate, or a lower bound above Λ.
  """
  if summary['broken']:
    some = ', '.join(map(str, summary['broken_ids'][:5]))
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


def print_table(summary: Mapping[str, Any], name: str) -> None:
  """Prints the attacks' numbers for people."""
  print(
    f'{name}, {summary["split"]} split, {summary["certificate"]} certificates '
    'under attack:'
  )
  print(f'  examples                    {summary["examples"]:>10d}')
  print(f'  clean accuracy              {summary["clean"]:>10.2f} %')
  print('  ℓ2 ε       certified   robust (found)   gap   robust in [0, 1]')
  for epsilon, row in summary['epsilons'].items():
    print(
      f'  {epsilon:<9s} {row["cra"]:>8.2f} % {row["robust"]:>13.2f} %'
      f' {row["gap"]:>6.2f} {row["robust_in_box"]:>16.2f} %'
    )
  ratio = summary['least_ratio']
  if ratio is not None:
    print(f'  least distance/radius       {ratio:>10.4f}')
  bounds = (
    summary['lipschitz_lower_bound'] - 1, summary['lipschitz_bound'] - 1
  )  # fmt: skip
  print('  Lipschitz constant, less 1  {:>+10.1e} … {:+.1e}'.format(*bounds))
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
