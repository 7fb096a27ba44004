r"""Turns official archives into ArrayRecord sets for training and TFDS.

    python -m lipnext_jax.data.prepare cifar10 \
      --source=cifar-10-python.tar.gz --data_dir=/data

Archives must have the checksums of the official ones, and every image is
decoded once. Shards are written in parallel; finished ones are skipped, so that
the same command continues after an interruption. The set appears under its name
only when it is complete. docs/data.md has the formats, the checks, the limits.
"""

from collections.abc import Sequence
import os
import shutil
import sys

from lipnext_jax import errors
from lipnext_jax import files

with errors.needing_extra('data', __name__):
  import filelock

  from lipnext_jax.data import formats
  from lipnext_jax.data import official
  from lipnext_jax.data import shards
  from lipnext_jax.runtime import command

_SHOWN = 10  # Bad records on the screen; the file has all.
_FACTS = 'prepared.json'  # File with the options that a set was prepared with.


def prepare(
  name: str,
  source: str,
  data_dir: str,
  *,
  resize: int = 0,
  workers: int = 0,
  allow_partial: bool = False,
  skip_bad: bool = False,
) -> str:
  """Writes a set, or the shards that are still missing; returns its folder.

  The arguments are those of the command line.

  Raises:
    ConfigError: the options contradict each other, or the set was prepared
      before with other options.
    DataError: the source is not official, or has bad examples, and the options
      do not allow this.
  """
  if not data_dir:
    raise errors.ConfigError('--data_dir', '', 'is empty', 'name a folder')
  if resize < 0 or (resize and name != 'imagenet'):
    problem = f'has no effect on {name}, whose images have one size'
    if name == 'imagenet':
      problem = 'is negative'
    raise errors.ConfigError('--resize', resize, problem, 'leave it out')
  official_set = official.SETS[name]
  parent = os.path.join(data_dir, official_set.name)
  final = os.path.join(parent, official_set.version)
  if os.path.exists(final):
    _check_finished(final, resize, allow_partial)
    print(f'{final} is prepared already', file=sys.stderr)
    return final
  contents = formats.read_set(name, source, allow_partial=allow_partial)
  form = shards.Form(official_set, contents.class_names, resize)
  digest = shards.digest(contents.splits, resize)
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
    written = shards.write_splits(work, contents.splits, form, workers)
    bad = [
      f'{split}, {key}: {problem}'
      for split, of_split in written.items()
      for shard in of_split
      for key, problem in shard.bad.items()
    ]
    if bad:
      path = os.path.join(work, 'progress', 'bad_records.txt')
      files.write_text(path, '\n'.join(bad) + '\n')
      print(*bad[:_SHOWN], sep='\n', file=sys.stderr)
      if not skip_bad:
        raise errors.DataError(
          f'{len(bad)} bad records, all listed in {path}; mend or fetch the '
          'source again, or leave them out with --skip_bad'
        )
    shards.write_metadata(work, form, written)
    facts = {'resize': resize, 'allow_partial': allow_partial, 'skipped': bad}
    files.write_json(os.path.join(work, _FACTS), facts)
    os.rename(work, final)
    shutil.rmtree(os.path.join(final, 'progress'))
  counts = [
    f'{sum(len(shard.labels) for shard in of_split)} {split}'
    for split, of_split in written.items()
  ]
  skipped = f'; {len(bad)} skipped' if bad else ''
  print(f'{final}: {", ".join(counts)}{skipped}', file=sys.stderr)
  return final


def _check_finished(final: str, resize: int, allow_partial: bool) -> None:
  """Checks that a set was prepared with these options."""
  try:
    facts = files.read_json(os.path.join(final, _FACTS))
  except (OSError, ValueError):
    facts = {}  # TFDS prepared the set: nothing was scaled or left out.
  wanted = {'resize': resize}
  if not allow_partial:
    wanted['allow_partial'] = False
  for flag, value in wanted.items():
    if (found := facts.get(flag, 0)) != value:
      raise errors.ConfigError(
        f'--{flag}',
        value,
        f'differs from the {found} that {final} was prepared with',
        'delete that folder to prepare it anew, or choose another --data_dir',
      )


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the set that the command line names; returns the exit code."""
  parser = command.Parser(
    prog='python -m lipnext_jax.data.prepare',
    description='Turns official archives into a set for training and TFDS.',
  )
  add = parser.add_argument
  names = ', '.join(formats.READERS)
  add('name', metavar='NAME', choices=formats.READERS, help=names)
  text = 'an archive, a folder of archives, or an extracted folder'
  add('--source', required=True, help=text)
  text = 'folder of prepared sets, as config.dataset.data_dir'
  add('--data_dir', required=True, help=text)
  text = 'shorter side in pixels to which ImageNet is scaled down; 0: none'
  add('--resize', type=int, default=0, help=text)
  text = 'threads that write'
  add('--workers', type=int, default=os.cpu_count() or 1, help=text)
  text = 'accept unofficial files, and fewer examples'
  add('--allow_partial', action='store_true', help=text)
  text = 'leave out images that cannot be stored; count them'
  add('--skip_bad', action='store_true', help=text)

  def run() -> None:
    prepare(**vars(parser.parse_args(argv)))

  return command.run(run)


if __name__ == '__main__':
  sys.exit(main())
