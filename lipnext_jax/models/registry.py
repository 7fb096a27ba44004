"""Builds the model of a config, for training and for evaluation."""

import dataclasses
from typing import Any

import ml_collections

from lipnext_jax import config
from lipnext_jax import models
from lipnext_jax.models import block
from lipnext_jax.models import interface


def build_model(
  c: ml_collections.ConfigDict,
  num_classes: int,
  devices: block.Devices = block.ONE_DEVICE,
) -> interface.CertifiedModel:
  """Builds the model of a valid `config.model`, in its training precision.

  `devices` is the communication of a LipNeXt's blocks on a mesh; the compiler
  chooses that of other models.
  """
  kind = models.MODELS[c.name]
  fields = {**c, **c.baseline}
  own = {f.name for f in dataclasses.fields(kind)} - {'name'}
  given: dict[str, Any] = {n: fields[n] for n in own & fields.keys()}
  given['num_classes'] = num_classes
  given['dtype'] = config.DTYPES[c.dtype]
  given['precision'] = config.PRECISIONS[c.precision]
  model = kind(**given)
  if c.name != 'lipnext' or c.parametrization != 'none':
    return model  # Maps need whole matrices.
  return model.clone(devices=devices)
