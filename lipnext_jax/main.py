"""The command line of training and certification.

    python -m lipnext_jax.main --config=configs/digits.py --workdir=DIR

Parses flags, turns mistakes into one line on stderr with an exit code, and
hands over to `lipnext_jax.train`.
"""

from collections.abc import Sequence
import os
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from lipnext_jax import errors
from lipnext_jax import train
from lipnext_jax import validation
from lipnext_jax.aot import compile as compile_lib
from lipnext_jax.parallel import distributed
from lipnext_jax.runtime import explain

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, e.g. configs/digits.py. Any of its fields can be changed: '
  '--config.model.depth=16.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where checkpoints, metrics and results go.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'compile'],
  'train: train or resume, then certify. eval: certify what is in --workdir. '
  'compile: only compile the train step, and say whether it fits the memory of '
  '--topology (exit code 3 if not); no data are read.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'For --mode=compile: a machine that need not be here, e.g. v5p:2x2x4, '
  'h100:2x1x8, cpu:16. Default: the devices of this one.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0, to run as one of several processes; "auto" where '
  'JAX recognises the cluster (Cloud TPU, SLURM, …); "env" where '
  'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. See '
  'launch/.',
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Of this run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Of this process.')


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    compiling = _MODE.value == 'compile'
    if _TOPOLOGY.value is not None and not compiling:
      raise errors.ConfigError(
        '--topology', _TOPOLOGY.value, 'does nothing here', 'add --mode=compile'
      )
    for flag in (_CONFIG,) if compiling else (_CONFIG, _WORKDIR):
      if flag.value is None:
        raise errors.ConfigError(
          f'--{flag.name}', None, 'is missing', f'add --{flag.name}=…'
        )
    _CONFIG.value.to_dict()  # A file that cannot be read raises only when used.
    if len(rest) > 1:
      raise errors.ConfigError(
        'argument', rest[1], 'is no flag', 'write --flag=value'
      )
    return rest
  except errors.UserError as error:
    _exit(error)
  except Exception as error:  # Whatever a config file or an override raised.
    _exit(validation.explain_override(argv, error))


def _exit(error: errors.UserError, at_once: bool = False) -> NoReturn:
  print(f'error: {error}', file=sys.stderr, flush=True)
  lasting = errors.CheckpointError | errors.LostProcessError
  if at_once or isinstance(error, lasting):
    # Threads are still at what failed, and would print what they trip over; an
    # orderly end of JAX would wait for the process that is gone.
    sys.stdout.flush()
    os._exit(error.exit_code)
  sys.exit(error.exit_code)


def main(argv: Sequence[str]) -> None:
  """Runs the mode; what is the user's to mend becomes one line, a code."""
  del argv  # Parsed.
  # Orbax logs what it also raises, with tracebacks; --verbosity=0 shows them.
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)
  try:
    if _MODE.value == 'compile':
      sys.exit(
        compile_lib.run(_CONFIG.value, _TOPOLOGY.value or '', _WORKDIR.value)
      )
    distributed.start(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    train.train_and_evaluate(
      _CONFIG.value, str(_WORKDIR.value), train=_MODE.value == 'train'
    )
  except (Exception, KeyboardInterrupt) as error:
    if (known := explain.explain(error)) is None:
      raise
    _exit(known, at_once=isinstance(error, KeyboardInterrupt))


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
