"""Reads a trained model from the workdir of a finished or stopped run.

config.json names the model and the data, and a checkpoint holds the weights.
All weights go to one device, whatever mesh they were trained on.
"""

from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import ml_collections

from lipnext_jax import checkpoint
from lipnext_jax import report
from lipnext_jax import schedules
from lipnext_jax import train_step
from lipnext_jax.config import validation
from lipnext_jax.models import interface
from lipnext_jax.models import registry


class Restored(NamedTuple):
  """A trained model with its config and the shape of its images."""

  config: ml_collections.ConfigDict  # The stored one, with the overrides.
  image_shape: tuple[int, int, int]  # (H, W, ch).
  model: interface.CertifiedModel  # Evaluates in float32, highest precision.
  params: Any  # The certified weights: float32 arrays on one device.
  step: int  # Number of updates.
  class_names: tuple[str, ...]  # By label; empty if they are not known.
  resize: int  # Shorter side in pixels before the crop; 0: neither of them.


def abstract_state(
  config: ml_collections.ConfigDict,
  model: interface.CertifiedModel,
  facts: Mapping[str, Any],
) -> train_step.TrainState:
  """Returns the shapes and dtypes of a run's state, on one device.

  Args:
    config: config of the run.
    model: model built from the config.
    facts: facts about the data, from `report.read_data_facts`.
  """
  plan = schedules.make_plan(config, facts['train_examples'])
  tx = train_step.build_optimizer(config.optimizer, plan)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  init = functools.partial(
    train_step.init_state, model, tx, facts['image_shape']
  )
  on_device = jax.jit(init, out_shardings=device)
  return on_device.eval_shape(jax.random.key(config.seed))


def restore(
  workdir: str, overrides: Mapping[str, Any] | None = None
) -> Restored:
  """Loads the config and the certified weights of `config.eval.checkpoint`.

  Args:
    workdir: workdir of a run of `lipnext_jax.main`.
    overrides: see `checkpoint.read_config`.

  Raises:
    ConfigError: the workdir holds no run, or its files contradict each other.
    CheckpointError: the weights cannot be used.
  """
  config = checkpoint.read_config(workdir, overrides)
  facts = report.read_data_facts(workdir)
  image_shape = facts['image_shape']
  reader = checkpoint.CheckpointReader(
    workdir, config_hash=checkpoint.hash_config(config)
  )
  step = reader.choose(config.eval.checkpoint)
  validation.check_image(config.model, image_shape)
  model = registry.build_model(config.model, facts['num_classes'])
  # A program that computes in float64 must not widen the stored arrays.
  with jax.enable_x64(False):
    abstract = abstract_state(config, model, facts)
    state = reader.restore(step, abstract)
    params = jax.jit(lambda state: state.certified_params(model))(state)
  return Restored(
    config=config,
    image_shape=image_shape,
    model=model.explicit(),
    params=params,
    step=step,
    class_names=facts['class_names'],
    resize=facts['resize'],
  )
