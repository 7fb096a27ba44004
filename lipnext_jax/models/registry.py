"""From a config to a model: the models by name, and their two precisions."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import errors
from lipnext_jax.models import baselines
from lipnext_jax.models import interface
from lipnext_jax.models import lipnext
from lipnext_jax.models import sharded

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = {
  'default': None,  # The backend's: tf32 or bf16 passes on accelerators.
  'high': jax.lax.Precision.HIGH,
  'highest': jax.lax.Precision.HIGHEST,
  # Operands rounded to bfloat16, sums in float32: what tensor cores do best.
  'bfloat16': jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
}


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
    form=model.form,
    unroll=model.unroll,
    data_shards=data_shards,
    activation=model.activation,
    position=model.position,
    parametrization=model.parametrization,
  )


def _liresnet(
  model: ml_collections.ConfigDict, num_classes: int, data_shards: int
) -> baselines.LiResNet:
  del data_shards  # Nothing is chosen by it.
  return baselines.LiResNet(
    num_classes=num_classes,
    power_iterations=model.baseline.power_iterations,
    padding=model.padding,
    **_baseline_fields(model),
  )


def _bronet(
  model: ml_collections.ConfigDict, num_classes: int, data_shards: int
) -> baselines.BRONet:
  del data_shards  # Nothing is chosen by it.
  return baselines.BRONet(
    num_classes=num_classes,
    reflector_ratio=model.baseline.reflector_ratio,
    **_baseline_fields(model),
  )


def _baseline_fields(model: ml_collections.ConfigDict) -> dict[str, Any]:
  return {
    'depth': model.depth,
    'width': model.width,
    'patch_size': model.patch_size,
    'dense_depth': model.baseline.dense_depth,
    'dense_width': model.baseline.dense_width,
    'kernel_size': model.baseline.kernel_size,
    'activation': model.activation,
    'beta': model.beta,
    'position': model.position,
    'dtype': DTYPES[model.dtype],
    'precision': PRECISIONS[model.precision],
  }


# Each: (config.model, num_classes, data_shards) → the model.
MODELS: dict[str, Callable[..., interface.CertifiedModel]] = {
  'lipnext': _lipnext,
  'liresnet': _liresnet,
  'bronet': _bronet,
}


def check_image(
  c: ml_collections.ConfigDict, image_shape: tuple[int, int, int]
) -> None:
  """Refuses a patch side that does not divide the dataset's images.

  And reflector kernels that are larger than the grid of patches.

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
  grid = height // c.patch_size, width // c.patch_size
  if c.name == 'bronet' and c.baseline.kernel_size > min(grid):
    raise errors.ConfigError(
      'model.baseline.kernel_size',
      c.baseline.kernel_size,
      f'exceeds the grid of {grid[0]}×{grid[1]} patches',
      f'choose at most {min(grid)}, or a smaller model.patch_size',
    )


def build_model(
  c: ml_collections.ConfigDict,
  num_classes: int,
  data_shards: int = 1,
  layout: sharded.Layout | None = None,
) -> interface.CertifiedModel:
  """The model of `config.model`, in its training precision.

  Args:
    c: `config.model`, validated.
    num_classes: k.
    data_shards: devices that split a batch.
    layout: how the blocks of a LipNeXt are spread; the compiler spreads other
      models.
  """
  model = MODELS[c.name](c, num_classes, data_shards)
  if layout is None:
    return model
  if layout.width_shards > 1:
    _check_width_sharding(c, layout.width_shards)
  if not isinstance(model, lipnext.LipNeXt) or model.parametrization != 'none':
    return model  # Maps of whole matrices.
  return model.clone(layout=layout)


def _check_width_sharding(c: ml_collections.ConfigDict, shards: int) -> None:
  """Refuses what the blocks do not do with split channels."""
  if c.name != 'lipnext' or c.parametrization != 'none':
    raise errors.ConfigError(
      'mesh.tensor',
      shards,
      f'splits no work of model.name={c.name}, model.parametrization='
      f'{c.parametrization}',
      'set mesh.tensor=1',
    )
  if c.activation != 'beta_abs':
    raise errors.ConfigError(
      'model.activation',
      c.activation,
      'pairs channels that the mesh axis tensor would part',
      "set mesh.tensor=1 or model.activation='beta_abs'",
    )
  if c.form not in ('auto', 'fused'):
    raise errors.ConfigError(
      'model.form',
      c.form,
      'is not possible where the mesh axis tensor splits the channels',
      "set mesh.tensor=1 or model.form='auto'",
    )


def for_evaluation(
  model: interface.CertifiedModel,
) -> interface.CertifiedModel:
  """The model of explicit parameters, float32 at the highest precision.

  Certificates are never computed in the precision that trained.
  """
  return model.explicit(jnp.float32)
