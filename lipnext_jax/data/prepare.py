r"""Turns official archives into ArrayRecord sets for training and TFDS.

    python -m lipnext_jax.data.prepare cifar10 \
      --source=cifar-10-python.tar.gz --data_dir=/data

Archives must have the checksums of the official ones, and every image is
decoded once. Shards are written in parallel; finished ones are skipped, so that
the same command continues after an interruption. The set appears under its name
only when it is complete. docs/data.md has the formats, the checks, the limits.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import glob
import os
import shutil
import sys
from typing import NamedTuple

import numpy as np

from lipnext_jax import errors
from lipnext_jax import files

with errors.needing_extra('data', __name__):
  import filelock

  from lipnext_jax.data import jobs
  from lipnext_jax.data import official
  from lipnext_jax.data import records
  from lipnext_jax.data.formats import archives
  from lipnext_jax.data.formats import cifar
  from lipnext_jax.data.formats import idx
  from lipnext_jax.data.formats import imagenet
  from lipnext_jax.data.formats import tiny_imagenet

_SHOWN = 10  # Bad records on the screen; the file has all.
_FACTS = 'prepared.json'  # File with the options that a set was prepared with.

READERS: dict[str, Callable[..., archives.Contents]] = {
  'cifar10': functools.partial(cifar.read_cifar, 'cifar10'),
  'cifar100': functools.partial(cifar.read_cifar, 'cifar100'),
  'tiny_imagenet': tiny_imagenet.read_tiny_imagenet,
  'imagenet': imagenet.read_imagenet,
  **{
    name: functools.partial(idx.read_idx, official.SETS[name])
    for name in official.IDX_CHECKSUMS
  },
}


class Options(NamedTuple):
  """The arguments of the command line; see `main`."""

  name: str  # A key of `READERS`.
  source: str
  data_dir: str
  resize: int = 0
  workers: int = 0
  allow_partial: bool = False
  skip_bad: bool = False


def prepare(options: Options) -> str:
  """Writes a set, or the shards that are still missing; returns its folder.

  Raises:
    ConfigError: the options contradict each other, or the set was prepared
      before with other options.
    DataError: the source is not official, or has bad examples, and the options
      do not allow this.
  """
  _check(options)
  official_set = official.SETS[options.name]
  parent = os.path.join(options.data_dir, official_set.name)
  final = os.path.join(parent, official_set.version)
  if os.path.exists(final):
    _check_finished(final, options)
    print(f'{final} is prepared already', file=sys.stderr)
    return final
  contents = read_set(options)
  form = records.Form(official_set, contents.class_names, options.resize)
  digest = jobs.digest(contents.splits, form)
  work = os.path.join(parent, f'incomplete.{official_set.version}.{digest}')
  os.makedirs(parent, exist_ok=True)
  try:  # A killed process does not keep this lock.
    lock = filelock.FileLock(os.path.join(parent, 'lock')).acquire(
      blocking=False
    )
  except filelock.Timeout:
    raise errors.DataError(
      f'{parent}: another process is preparing this set'
    ) from None
  with lock:
    for other in glob.glob('incomplete.*', root_dir=parent):
      if other != os.path.basename(work):
        print(f'{parent}/{other}: has other data, deleted', file=sys.stderr)
        shutil.rmtree(os.path.join(parent, other))
    shards = jobs.write_splits(
      work, contents.splits, form, workers=options.workers
    )
    bad = [
      f'{split}, {key}: {problem}'
      for split, results in shards.items()
      for result in results
      for key, problem in result.bad.items()
    ]
    if bad:
      _report_bad(bad, work, options.skip_bad)
    counts = []
    for split, results in shards.items():
      labels = [label for result in results for label in result.labels]
      if not labels:
        raise errors.DataError(f'{options.source}, {split}: all images are bad')
      counts.append(f'{len(labels)} {split}')
      np.save(records.labels_path(work, split), np.array(labels, np.int32))
    records.write_metadata(work, form, shards)
    facts = {
      'resize': options.resize,
      'allow_partial': options.allow_partial,
      'skipped': bad,
    }
    files.write_json(os.path.join(work, _FACTS), facts)
    os.rename(work, final)
    shutil.rmtree(os.path.join(final, 'progress'))
  skipped = f'; {len(bad)} skipped' if bad else ''
  print(f'{final}: {", ".join(counts)}{skipped}', file=sys.stderr)
  return final


def read_set(options: Options) -> archives.Contents:
  """Reads an official set, and checks its labels and counts.

  Raises:
    DataError: a file is missing, malformed or not official.
  """
  official_set = official.SETS[options.name]
  contents = READERS[options.name](
    options.source, allow_partial=options.allow_partial
  )
  for split, expected in official_set.splits.items():
    items = contents.splits[split]
    where = f'{options.source}, split {split}'
    for item in items:
      for feature, label in item.labels.items():
        count = len(contents.class_names[feature])
        if not 0 <= label < count:
          raise errors.DataError(
            f'{where}, {item.key}: has {feature} {label} of {count} classes'
          )
    labels = np.array([item.labels['label'] for item in items], int)
    counts = np.bincount(labels, minlength=official_set.num_classes)
    uneven = split in official_set.balanced and counts.min() != counts.max()
    if options.allow_partial and 0 < len(items) <= expected:
      continue
    if len(items) != expected or uneven:
      raise errors.DataError(
        f'{where}: has {len(items)} examples, {counts.min()} to '
        f'{counts.max()} of each class, where the official set has {expected}; '
        'fetch it again, or take what is there with --allow_partial'
      )
  return contents


def _check(options: Options) -> None:
  """Checks that the options are complete and go together."""
  if options.name not in READERS:
    raise errors.ConfigError(
      'NAME', options.name, 'is unknown', f'choose one of {", ".join(READERS)}'
    )
  for flag, value in (
    ('source', options.source), ('data_dir', options.data_dir)
  ):  # fmt: skip
    if not value:
      raise errors.ConfigError(f'--{flag}', '', 'is missing', f'add --{flag}=…')
  for flag, number in (
    ('resize', options.resize),
    ('workers', options.workers),
  ):
    if number < 0:
      raise errors.ConfigError(
        f'--{flag}', number, 'is negative', 'choose 0 or more'
      )
  if options.resize and options.name != 'imagenet':
    raise errors.ConfigError(
      '--resize',
      options.resize,
      f'has no effect on {options.name}, whose images have one size',
      'leave it out',
    )


def _check_finished(final: str, options: Options) -> None:
  """Checks that a set was prepared with these options."""
  try:
    facts = files.read_json(os.path.join(final, _FACTS))
  except (OSError, ValueError):
    facts = {}  # TFDS prepared the set: nothing was scaled or left out.
  wanted = {'resize': options.resize}
  if not options.allow_partial:
    wanted['allow_partial'] = False
  for flag, value in wanted.items():
    if (found := facts.get(flag, 0)) != value:
      raise errors.ConfigError(
        f'--{flag}',
        value,
        f'differs from the {found} that {final} was prepared with',
        'delete that folder to prepare it anew, or choose another --data_dir',
      )


def _report_bad(bad: Sequence[str], work: str, skip: bool) -> None:
  """Lists the bad images; raises unless they are to be skipped."""
  path = os.path.join(work, 'progress', 'bad_records.txt')
  files.write_text(path, '\n'.join(bad) + '\n')
  for line in bad[:_SHOWN]:
    print(line, file=sys.stderr)
  if not skip:
    raise errors.DataError(
      f'{len(bad)} bad records, all listed in {path}; mend or fetch the source '
      'again, or leave them out with --skip_bad'
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the set that the command line names; returns the exit code."""
  # Worker processes import this module, and do without JAX.
  from lipnext_jax.runtime import command

  parser = command.Parser(
    prog='python -m lipnext_jax.data.prepare',
    description='Turns official archives into a set for training and TFDS.',
  )
  add = parser.add_argument
  add('name', metavar='NAME', nargs='?', default='', help=', '.join(READERS))
  add(
    '--source',
    default='',
    help='an archive, a folder of archives, or an extracted folder',
  )
  add(
    '--data_dir',
    default='',
    help='folder of prepared sets, as config.dataset.data_dir',
  )
  add(
    '--resize',
    type=int,
    default=0,
    help='shorter side in pixels to which ImageNet is scaled down; 0: none',
  )
  add(
    '--workers',
    type=int,
    default=os.cpu_count() or 1,
    help='worker processes; 0: none',
  )
  add(
    '--allow_partial',
    action='store_true',
    help='accept unofficial files, and fewer examples',
  )
  add(
    '--skip_bad',
    action='store_true',
    help='leave out images that cannot be stored; count them',
  )

  def run() -> int:
    prepare(Options(**vars(parser.parse_args(argv))))
    return 0

  return command.run(run)


if __name__ == '__main__':
  sys.exit(main())
