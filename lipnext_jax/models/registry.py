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
  """Builds the model of `config.model`, in its training precision.

  Args:
    c: `config.model`, validated. A model is given the fields that it has.
    num_classes: number of classes.
    devices: communication of a LipNeXt's blocks on a mesh; the compiler chooses
      that of other models.
  """
  kind = models.MODELS[c.name]
  fields = {**c, **c.baseline}
  given: dict[str, Any] = {
    f.name: fields[f.name]
    for f in dataclasses.fields(kind)
    if f.name in fields and f.name != 'name'  # Every module has a name.
  }
  given['num_classes'] = num_classes
  given['dtype'] = config.DTYPES[c.dtype]
  given['precision'] = config.PRECISIONS[c.precision]
  model = kind(**given)
  if c.name != 'lipnext' or c.parametrization != 'none':
    return model  # Maps need whole matrices.
  return model.clone(devices=devices)
