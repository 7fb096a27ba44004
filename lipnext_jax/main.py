"""The command line of training and certification.

    python -m lipnext_jax.main --config=configs/digits.py --workdir=DIR

`--version` prints the version. `python -m lipnext_jax` is the same program.

modes:

  --mode=train    trains or resumes what is in --workdir, then certifies it
  --mode=eval     certifies what is in --workdir
  --mode=compile  compiles the train step, and says whether it fits the memory
                  of --topology (exit code 3 if not); it needs no official set
  --mode=config   prints every field of --config with its value and meaning

configs, and the words that may follow a colon (configs/digits.py:smoke); from
any folder, lipnext_jax:digits stands for configs/digits.py:

  configs/folder.py              size=32 … size=224, gpu, smoke
  configs/digits.py              model=liresnet, model=bronet, smoke
  configs/fashion_mnist.py       model=liresnet, model=bronet, quick, smoke
  configs/cifar10.py             L32W1024, smoke
  configs/cifar100.py            L32W1024, smoke
  configs/tiny_imagenet.py       smoke
  configs/imagenet_1b.py         eps1, smoke
  configs/imagenet_2b.py         eps1, smoke
  configs/imagenet_8b.py         eps1, smoke
  configs/imagenet400_scaling.py L32W1024 and seven more sizes, smoke
  configs/synthetic.py           smoke

Every field of a config can be set: --config.model.depth=16. --mode=config
prints them all; they are declared in lipnext_jax/config/fields.py.

further programs (each has --help):

  python -m lipnext_jax.certify       image files → classes and radii
  python -m lipnext_jax.attacks       tries to break every certificate of a run
  python -m lipnext_jax.report        writes report.html again
  python -m lipnext_jax.data.prepare  official archives → records
"""

from collections.abc import Sequence
import os
import pathlib
import re
import sys
from typing import NoReturn

import lipnext_jax
from lipnext_jax import errors

with errors.needing_extra('train', __name__):
  from absl import app
  from absl import flags
  from absl import logging
  from ml_collections import config_flags

  from lipnext_jax import config as config_lib
  from lipnext_jax import parallel
  from lipnext_jax import terminal
  from lipnext_jax import train
  from lipnext_jax.aot import compile as compile_lib
  from lipnext_jax.runtime import command

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, e.g. configs/digits.py, or one of the package from any folder: '
  'lipnext_jax:digits.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where checkpoints, metrics and results go: a directory or gs://BUCKET/FOLDER.',
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'compile', 'config'],
  'What to do, see above.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'For --mode=compile: a machine that you need not have, e.g. v5p:2x2x4, '
  'h100:2x1x8, cpu:16.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'For a run of several processes: host:port of process 0; "auto" on a cluster '
  'that JAX recognises (Cloud TPU, SLURM, …); "env" to read '
  'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. See launch/.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes of this run.'
)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Index of this process.')


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the command line; a mistake ends the program with one line."""
  terminal.open_streams()
  if '--version' in argv:
    print(f'lipnext_jax {lipnext_jax.__version__}')
    sys.exit()
  if {'--help', '-help', '-h', '--helpshort', '--helpfull'} & {*argv[1:]}:
    # absl itself would exit with 1.
    shorthelp = '--helpfull' not in argv
    app.usage(shorthelp=shorthelp, writeto_stdout=True, exitcode=0)
  try:
    rest = flags.FLAGS([_find_config(a) for a in terminal.expand_home(argv)])
    if _TOPOLOGY.value is not None and _MODE.value != 'compile':
      raise errors.ConfigError(
        '--topology', _TOPOLOGY.value, 'has no effect', 'add --mode=compile'
      )
    needs_workdir = _MODE.value in ('train', 'eval')
    for flag in (_CONFIG, _WORKDIR) if needs_workdir else (_CONFIG,):
      if flag.value is None:
        raise errors.ConfigError(
          f'--{flag.name}', None, 'is missing', f'add --{flag.name}=…'
        )
    _CONFIG.value.to_dict()  # Raises if the file could not be read.
    if len(rest) > 1:
      raise errors.ConfigError(
        'argument', rest[1], 'is not a flag', 'write --flag=value'
      )
    return rest
  except errors.UserError as error:
    _exit(error)
  except Exception as error:  # Whatever a config file or an override raised.
    _exit(_explain_override(argv, error))


def _find_config(argument: str) -> str:
  """Replaces `lipnext_jax:NAME`, a value of --config, by a path.

  >>> _find_config('--config=lipnext_jax:digits:smoke').endswith('.py:smoke')
  True
  """
  found = re.fullmatch('(|--?config=)(lipnext_jax:([^:]*)(.*))', argument)
  if not found:
    return argument
  flag, value, name, words = found.groups()
  inside = pathlib.Path(__file__).parent
  # Inside of an installed package, beside that of a clone.
  folders = [inside / 'configs', inside.parent / 'configs']
  paths = {p.stem: p for folder in folders for p in folder.glob('*.py')}
  if name not in paths:
    raise errors.ConfigError(
      '--config',
      value,
      'is not a config of the package',
      f'choose lipnext_jax: and one of {", ".join(sorted(paths))}',
    )
  return f'{flag}{paths[name]}{words}'


def _explain_override(
  argv: Sequence[str], error: Exception
) -> errors.ConfigError:
  """Explains in one line an error that parsing `--config.x=…` raised."""
  given = [arg.lstrip('-').partition('=')[::2] for arg in argv[1:]]
  if 'config' not in dict(given):
    return errors.ConfigError('--config', None, 'is missing', 'add --config=…')
  for name, value in given:
    field = name.removeprefix('config.')
    if name == 'config':
      path = value.partition(':')[0]
      if not path or os.path.isfile(path):
        continue
      problem, remedy = 'is not a file', '`--help` lists the configs'
    elif field == name:  # Another flag.
      continue
    elif field in config_lib.FIELDS:
      default = config_lib.FIELDS[field].default
      try:
        type(default)(value or default)
        continue
      except ValueError:  # Of a number.
        problem = f'is not of type {type(default).__name__}'
        remedy = f'write e.g. {default}'
    elif any(known.startswith(f'{field}.') for known in config_lib.FIELDS):
      continue  # A section.
    else:
      problem = 'is not a config field'
      remedy = (
        f'did you mean {config_lib.closest(field)}? All fields: '
        'lipnext_jax/config/fields.py'
      )
    return errors.ConfigError(f'--{name}', value, problem, remedy)
  return errors.ConfigError(
    'command line',
    ' '.join(argv[1:]),
    f'was not understood ({errors.one_line(error)})',
    'see `python -m lipnext_jax.main --help` and lipnext_jax/config/fields.py',
  )


def _exit(error: errors.UserError, at_once: bool = False) -> NoReturn:
  """Prints an error and ends the program with its exit code."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  lasting = errors.CheckpointError | errors.LostProcessError
  if at_once or isinstance(error, lasting):
    # Threads that still work on what failed would print errors of their own,
    # and JAX's shutdown would wait for the lost process.
    sys.stdout.flush()
    os._exit(error.exit_code)
  sys.exit(error.exit_code)


def main(argv: Sequence[str]) -> None:
  """Runs the mode; prints a user error in one line and exits with its code."""
  del argv  # Unused: `_parse` has read the flags.
  # Orbax logs tracebacks of what it raises; --verbosity=0 shows them.
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)
  try:
    if _MODE.value == 'config':
      config_lib.validate(_CONFIG.value)
      print(config_lib.describe(_CONFIG.value))
      return
    if _MODE.value == 'compile':
      sys.exit(
        compile_lib.run(_CONFIG.value, _TOPOLOGY.value or '', _WORKDIR.value)
      )
    parallel.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    train.train_and_evaluate(
      _CONFIG.value, str(_WORKDIR.value), train=_MODE.value == 'train'
    )
  except BrokenPipeError:
    terminal.drop_output()
    sys.exit(terminal.CLOSED)
  except (Exception, KeyboardInterrupt) as error:
    if (known := command.explain(error)) is None:
      raise
    _exit(known, at_once=isinstance(error, KeyboardInterrupt))


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
