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
  import tqdm

  from lipnext_jax import report
  from lipnext_jax.checkpoint import restore
  from lipnext_jax.data import sources
  from lipnext_jax.runtime import command


# Whole numbers: (flag, default, smallest, meaning).
_NUMBERS = (
  ('examples', 0, 0, 'number of examples, from the first on; 0: all'),
  ('restarts', run_lib.Settings().restarts, 1, 'starts of a gradient attack'),
  ('steps', run_lib.Settings().steps, 1, 'steps of a gradient attack'),
  ('seed', 0, 0, 'seed of every random draw'),
  ('batch_size', target_lib.BATCH_SIZE, 1, 'images in one forward pass'),
)
# Fields of the run's config that a flag overrides, and their choices.
_FIELDS = {
  'eval.certificate': certify.CERTIFICATES,
  'eval.split': sources.FINAL_SPLITS,
  'eval.checkpoint': ('last', 'best'),
  'dataset.data_dir': None,
}


class BrokenCertificateError(errors.UserError):
  """A certificate or the bound Λ is wrong."""

  exit_code = 5


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
  for name, default, _, meaning in _NUMBERS:
    add(f'--{name}', type=int, default=default, help=meaning)
  for field, choices in _FIELDS.items():
    add(
      f'--{field.split(".")[1]}',
      dest=field,
      default=argparse.SUPPRESS,
      choices=choices,
      help=f'instead of {field} of the run',
    )
  flags = parser.parse_args(argv)
  for name, _, smallest, _ in _NUMBERS:
    if vars(flags)[name] < smallest:
      parser.error(f'--{name} must be at least {smallest}')
  return flags


def attack_workdir(flags: argparse.Namespace) -> None:
  """Attacks the run in a workdir, and writes and prints the results.

  Raises:
    BrokenCertificateError: a certificate or Λ is wrong (after writing).
    ConfigError: the workdir or its data do not exist.
  """
  start = time.perf_counter()
  given = {k: v for k, v in vars(flags).items() if k in _FIELDS}
  found = restore.restore(flags.workdir, given)
  config = found.config
  dataset = sources.load_dataset(config.dataset)
  source = sources.final_split(dataset, config.eval.split)
  examples = [source[i] for i in range(len(source))[: flags.examples or None]]
  images = np.stack([example['image'] for example in examples])
  labels = np.array([int(example['label']) for example in examples])

  certificate, epsilons = config.eval.certificate, config.eval.epsilons
  target = target_lib.certified_target(
    certificate, found.model, found.params, images, batch_size=flags.batch_size
  )
  settings = run_lib.Settings(restarts=flags.restarts, steps=flags.steps)
  with tqdm.tqdm(unit=' attacks', delay=1, leave=False, disable=None) as bar:

    def tick(total):
      bar.total = total
      bar.update()

    ledger = run_lib.attack_target(
      target, epsilons, settings, seed=flags.seed, log=report.log, tick=tick
    )
  lower = lower_bound.lipschitz_lower_bound(
    found.model, found.params, target.images, seed=flags.seed
  )
  summary = {
    'step': found.step,
    'split': config.eval.split,
    'certificate': certificate,
    'seed': flags.seed,
    'settings': settings._asdict(),
    **run_lib.summarise(ledger, labels, epsilons),
    'lipschitz_bound': target.lipschitz,
    'lipschitz_lower_bound': lower.backbone,
    'logit_lipschitz_lower_bound': lower.logits,
    'seconds': round(time.perf_counter() - start, 1),
  }
  path = os.path.join(flags.workdir, 'attack')
  files.write_arrays(f'{path}.npz', run_lib.arrays(ledger, labels))
  files.write_json(f'{path}.json', summary)
  print_table(summary, config.dataset.name, epsilons)
  if files.exists(os.path.join(flags.workdir, 'eval.json')):
    try:
      report.log(f'shown in {report.write_page(flags.workdir)}')
    except (OSError, errors.UserError) as error:
      report.log(f'no report.html: {error}')  # The verdict must not be lost.
  check(summary)


def check(summary: Mapping[str, Any]) -> None:
  """Raises BrokenCertificateError for a broken certificate or Λ."""
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


def print_table(
  summary: Mapping[str, Any], name: str, epsilons: Sequence[float]
) -> None:
  """Prints `attack.json`, given the dataset's name and the reported radii."""
  lower, upper = summary['lipschitz_lower_bound'], summary['lipschitz_bound']
  ratio = summary['least_ratio']
  print(
    f'{name}, {summary["split"]} split, {summary["certificate"]} certificates '
    'under attack:'
  )
  print(f'  examples                    {summary["examples"]:>10d}')
  print(f'  clean accuracy              {summary["clean"]:>10.2f} %')
  print('  ℓ2 ε       certified   robust (found)   gap   robust in [0, 1]')
  for epsilon in epsilons:
    row = summary['epsilons'][f'{epsilon:.6g}']
    print(
      f'  {decimals.epsilon_name(epsilon):<9s} '
      f'{decimals.down(row["cra"], 2):>8s} % {row["robust"]:>13.2f} % '
      f'{row["gap"]:>6.2f} {row["robust_in_box"]:>16.2f} %'
    )
  if ratio is not None:
    print(f'  least distance/radius       {ratio:>10.4f}')
  print(f'  Lipschitz constant, less 1  {lower - 1:>+10.1e} … {upper - 1:+.1e}')
  print(f'  runs at a certified radius  {summary["runs"]:>10d}')
  print(f'  certificates broken         {summary["broken"]:>10d}', flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the attacks; returns the exit code."""
  return command.run(lambda: attack_workdir(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
