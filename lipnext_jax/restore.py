"""What a finished (or stopped) run left in its workdir, ready to be used.

Everything that is done to a model after its training starts here: config.json
says which model and which data, the newest checkpoint holds its weights. One
device gets all of it, whatever mesh trained.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any
from typing import NamedTuple

import jax
import ml_collections

from lipnext_jax import checkpoint
from lipnext_jax import checkpoint_reader
from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax import optim
from lipnext_jax import report
from lipnext_jax import schedules
from lipnext_jax import train_step
from lipnext_jax import validation
from lipnext_jax.models import interface
from lipnext_jax.models import registry

_REMEDY = 'name the directory of a training run'


class Restored(NamedTuple):
  """A trained model, and what is needed to feed it."""

  config: ml_collections.ConfigDict  # As stored, with the overrides.
  image_shape: tuple[int, int, int]  # (H, W, ch) of what it takes.
  num_classes: int
  model: interface.CertifiedModel  # Explicit: float32, highest precision.
  params: Any  # Float32 arrays on one device: the weights that are certified.
  step: int  # Updates that made them.


def read_config(
  workdir: str, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """The config of the run that lives in `workdir`.

  Args:
    workdir: holds a config.json.
    overrides: {'eval.split': …}: fields that do not decide what was trained
      (`config.Field.free`), e.g. a `dataset.data_dir` of this machine.

  Raises:
    ConfigError: no config.json, one that is not understood, an override of a
      field that decided what was trained, or a config that is refused.
  """
  path = os.path.join(workdir, checkpoint.CONFIG_FILE)
  try:
    fields = files.read_json(path)
    if not isinstance(fields, dict):
      raise ValueError('it holds no fields')
  except FileNotFoundError:
    raise errors.ConfigError(
      '--workdir', workdir, f'holds no {checkpoint.CONFIG_FILE}', _REMEDY
    ) from None
  except (OSError, ValueError) as error:
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has an unreadable {checkpoint.CONFIG_FILE} ({error})',
      _REMEDY,
    ) from None
  config = config_lib.default_config()
  defaults = config_lib.build_field_list(config)
  free = defaults.keys() - config_lib.identity(config)
  for name, value in (overrides or {}).items():
    if name not in free:
      raise errors.ConfigError(
        name,
        value,
        f'cannot change what was trained in {workdir}',
        'leave it out',
      )
    fields[name] = value
  for name in fields.keys() - defaults.keys():
    raise errors.ConfigError(
      '--workdir',
      workdir,
      f'has the unknown field {name!r} in its {checkpoint.CONFIG_FILE}',
      'use the version of lipnext_jax that wrote it',
    )
  for name, value in fields.items():
    try:
      config.update_from_flattened_dict({name: _tuples(value)})
    except (TypeError, ValueError, AttributeError, KeyError):
      raise errors.ConfigError(
        name,
        value,
        f'in {path} is no {type(defaults[name]).__name__}',
        _REMEDY,
      ) from None
  config_lib.validate(config)
  return config


def _tuples(value: Any) -> Any:
  """JSON knows no tuples: lists back into what the config had."""
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value


def abstract_state(
  config: ml_collections.ConfigDict,
  model: interface.CertifiedModel,
  facts: Mapping[str, Any],
) -> train_step.TrainState:
  """Shapes and dtypes of a run's state, all of it on one device.

  Args:
    config: of the run.
    model: built from it.
    facts: from `report.read_data_facts`.
  """
  plan = schedules.make_plan(config, facts['train_examples'])
  tx = train_step.build_optimizer(config.optimizer, plan)
  shape = tuple(facts['image_shape'])
  abstract = jax.eval_shape(
    functools.partial(train_step.init_state, model, tx, shape),
    jax.random.key(config.seed),
  )
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    abstract,
  )


def restore(
  workdir: str, overrides: Mapping[str, Any] | None = None
) -> Restored:
  """Loads the config and the weights that evaluation certifies; no data.

  The checkpoint is the one of `config.eval.checkpoint` ('last' or 'best').

  Args:
    workdir: of a run of `lipnext_jax.main`.
    overrides: see `read_config`.

  Raises:
    ConfigError: there is no run in the workdir, or its files do not fit.
  """
  config = read_config(workdir, overrides)
  facts = report.read_data_facts(workdir)
  image_shape, num_classes = tuple(facts['image_shape']), facts['num_classes']
  reader = checkpoint_reader.CheckpointReader(
    workdir, config_hash=checkpoint.hash_config(config)
  )
  step = reader.choose(config.eval.checkpoint)
  validation.check_image(config.model, image_shape)
  model = registry.build_model(config.model, num_classes)
  # The types that were stored, also in a program that computes in float64.
  with jax.enable_x64(False):
    abstract = abstract_state(config, model, facts)
    state = reader.restore(step, abstract)
    slow = optim.slow_params(state.opt_state, state.params)
    certified = functools.partial(interface.certified_params, model)
    params = jax.jit(certified)(slow)
  return Restored(
    config=config,
    image_shape=image_shape,
    num_classes=num_classes,
    model=registry.for_evaluation(model),
    params=params,
    step=step,
  )
