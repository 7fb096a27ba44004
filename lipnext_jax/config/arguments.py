"""Finds config files of the package and parses the words after their colon.

Config files use `parse_argument` and `smoke`, as members of `config`.
"""

import pathlib

import ml_collections

from lipnext_jax import errors

# Last group of words in the argument of every config file.
SMOKE = ('', 'smoke')


def parse_argument(arg: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
  """Parses a config file's argument: words in any order, comma-separated.

  Args:
    arg: text after the colon of `--config=configs/X.py:…`.
    *choices: groups of words that exclude each other; the first word of a
      group is its default, '' if the group may be left out.

  Returns:
    One word of each group.

  Raises:
    ConfigError: a word is in none of the groups, or two words are in one.

  >>> parse_argument('smoke,W32', ('W16', 'W32'), ('', 'smoke'))
  ('W32', 'smoke')
  >>> parse_argument('', ('W16', 'W32'), ('', 'smoke'))
  ('W16', '')
  """
  chosen: dict[tuple[str, ...], str] = {}
  for word in arg.split(',') if arg else ():
    group = next((g for g in choices if word and word in g), None)
    if group is None:
      known = [known for group in choices for known in group if known]
      raise errors.ConfigError(
        '--config argument',
        word,
        'is unknown',
        f"append nothing, or ':' and any of {', '.join(known)}",
      )
    if group in chosen:
      raise errors.ConfigError(
        '--config argument',
        word,
        f'excludes {chosen[group]!r}',
        'keep one of them',
      )
    chosen[group] = word
  return tuple(chosen.get(group, group[0]) for group in choices)


def find_config(value: str) -> str:
  """Replaces the name of a config of the package by the path of its file.

  Args:
    value: value of `--config`, 'lipnext_jax:NAME' or 'lipnext_jax:NAME:WORDS'.

  Returns:
    'PATH' or 'PATH:WORDS'.

  Raises:
    ConfigError: the package has no config of this name.

  >>> find_config('lipnext_jax:digits:smoke').endswith('digits.py:smoke')
  True
  """
  _, name, *words = value.split(':', maxsplit=2)
  inside = pathlib.Path(__file__).parent.parent
  # Inside of an installed package, beside that of a clone.
  folders = [inside / 'configs', inside.parent / 'configs']
  shipped = {
    path.stem: path for folder in folders for path in folder.glob('*.py')
  }
  if name not in shipped:
    raise errors.ConfigError(
      '--config',
      value,
      'is not a config of the package',
      f'choose lipnext_jax: and one of {", ".join(sorted(shipped))}',
    )
  return ':'.join([str(shipped[name]), *words])


def smoke(
  config: ml_collections.ConfigDict,
  arg: str,
  *,
  image_size: int = 0,
  num_classes: int = 0,
) -> ml_collections.ConfigDict:
  """Reduces a config to two steps of a tiny model, if `arg` is 'smoke'.

  Args:
    config: config that is changed in place.
    arg: word of the group `SMOKE`, as `parse_argument` returns it.
    image_size: side in pixels of random images that replace the dataset, which
      need not be on the disk then; 0 keeps the dataset.
    num_classes: number of classes of the random images.

  Returns:
    `config`.

  >>> from lipnext_jax import config
  >>> smoke(config.default_config(), 'smoke').duration
  '2 steps'
  """
  if not arg:
    return config
  config.model.depth, config.model.width = 2, 16
  if config.model.name != 'lipnext':
    config.model.baseline.dense_depth = 1
    config.model.baseline.dense_width = 16
  if config.model.pool == 'neck':
    config.model.neck_width, config.model.neck_depth = 16, 1
  config.batch_size, config.duration = 16, '2 steps'
  config.eval.batch_size = 64
  config.optimizer.warmup = '1 steps'
  config.eval.every = '1 steps'
  config.eval.monitor_examples = 16
  config.checkpoint.every = '1 steps'
  config.log.every = '1 steps'
  if image_size:
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    config.microbatches = 1
    config.dataset.name = 'synthetic'
    config.dataset.image_size = config.dataset.resize = 0
    config.dataset.synthetic.image_size = image_size
    config.dataset.synthetic.num_classes = num_classes
    config.dataset.synthetic.train_examples = 64
    config.dataset.synthetic.test_examples = 64
  return config
