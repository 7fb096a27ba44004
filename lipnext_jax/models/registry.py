"""From a config to a model: the models by name, and their two precisions."""

import dataclasses
import math

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


MODELS: dict[str, type[interface.CertifiedModel]] = {
  'lipnext': lipnext.LipNeXt,
  'liresnet': baselines.LiResNet,
  'bronet': baselines.BRONet,
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
  layout: sharded.Layout | None = None,
) -> interface.CertifiedModel:
  """Builds the model of `config.model`, in its training precision.

  Args:
    c: `config.model`, validated. A model is given the fields that it has.
    num_classes: number of classes.
    layout: how the blocks of a LipNeXt lie on a mesh; the compiler lays other
      models out.

  Raises:
    ConfigError: channels would be split of a model that cannot split them.
  """
  kind = MODELS[c.name]
  fields = {**c, **c.baseline}
  fields = {
    f.name: fields[f.name]
    for f in dataclasses.fields(kind)
    if f.name in fields and f.name != 'name'  # Every module has a name.
  }
  fields['dtype'] = DTYPES[c.dtype]
  fields['precision'] = PRECISIONS[c.precision]
  model = kind(num_classes=num_classes, **fields)
  if layout is not None and layout.width_shards > 1:
    _check_width_sharding(c, layout.width_shards)
  if layout is None or c.name != 'lipnext' or c.parametrization != 'none':
    return model  # Maps need whole matrices.
  return model.clone(layout=layout)


def _check_width_sharding(c: ml_collections.ConfigDict, shards: int) -> None:
  """Refuses models whose channels cannot be split."""
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


def for_evaluation(
  model: interface.CertifiedModel,
) -> interface.CertifiedModel:
  """The model of explicit parameters, float32 at the highest precision.

  Certificates are never computed in the precision that trained.
  """
  return model.explicit(jnp.float32)
