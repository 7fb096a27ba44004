"""From a config to a model: the models by name, and their two precisions."""

from collections.abc import Callable
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import errors
from lipnext_jax.models import lipnext
from lipnext_jax.models import sharded

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = {
  'default': None,  # The backend's: tf32 or bf16 passes on accelerators.
  'high': jax.lax.Precision.HIGH,
  'highest': jax.lax.Precision.HIGHEST,
}
FUSE = {'auto': None, 'on': True, 'off': False}


def _lipnext(
  model: ml_collections.ConfigDict, num_classes: int, data_shards: int
) -> lipnext.LipNeXt:
  return lipnext.LipNeXt(
    num_classes=num_classes,
    depth=model.depth,
    width=model.width,
    patch_size=model.patch_size,
    shift_ratio=model.shift_ratio,
    beta=model.beta,
    padding=model.padding,
    r_init=model.r_init,
    m_init=model.m_init,
    dtype=DTYPES[model.dtype],
    precision=PRECISIONS[model.precision],
    remat=model.remat,
    fuse=FUSE[model.fuse],
    data_shards=data_shards,
  )


# Each: (config.model, num_classes, data_shards) → module mapping images in
# [0, 1] to logits, with `dtype` and `precision` fields and a unit-norm head.
MODELS: dict[str, Callable[..., nn.Module]] = {'lipnext': _lipnext}


def check_image(
  c: ml_collections.ConfigDict, image_shape: tuple[int, int, int]
) -> None:
  """Refuses a patch side that does not divide the dataset's images.

  Raises:
    ConfigError: naming the sides that would fit.
  """
  height, width, _ = image_shape
  if height % c.patch_size or width % c.patch_size:
    common = math.gcd(height, width)
    fits = [k for k in range(1, common + 1) if common % k == 0]
    raise errors.ConfigError(
      'model.patch_size',
      c.patch_size,
      f'does not divide images of {height}×{width} pixels',
      f'choose one of {", ".join(map(str, fits))}',
    )


def build_model(
  c: ml_collections.ConfigDict,
  num_classes: int,
  data_shards: int = 1,
  layout: sharded.Layout | None = None,
) -> nn.Module:
  """The model of `config.model`, in its training precision.

  Args:
    c: `config.model`, validated.
    num_classes: k.
    data_shards: devices that split a batch.
    layout: how the blocks of a LipNeXt are spread; the compiler spreads other
      models.
  """
  model = MODELS[c.name](c, num_classes, data_shards)
  if layout is not None and isinstance(model, lipnext.LipNeXt):
    model = model.clone(layout=layout)
  return model


def for_evaluation(model: nn.Module) -> nn.Module:
  """The same function in float32 with products at the highest precision.

  Certificates are never computed in the precision that trained.
  """
  return model.clone(
    dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST, remat='none'
  )
