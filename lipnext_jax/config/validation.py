"""Checks a config across its fields, and against the data and the devices.

`config.validate` checks each field by itself first.
"""

import itertools
import math
import re
from typing import Any

import ml_collections

from lipnext_jax import errors
from lipnext_jax.data import sources
from lipnext_jax.models import parametrizations


def check_combinations(c: ml_collections.ConfigDict) -> None:
  """Raises if fields contradict each other.

  Args:
    c: config whose fields are valid by themselves.

  Raises:
    ConfigError: two fields do not go together.
  """
  if c.loss.epsilon_end < c.loss.epsilon_start:
    raise errors.ConfigError(
      'loss.epsilon_end',
      c.loss.epsilon_end,
      f'is below loss.epsilon_start={c.loss.epsilon_start}',
      'the training radius never shrinks: swap them',
    )
  if 0 < c.health.loss_spike <= 1:
    raise errors.ConfigError(
      'health.loss_spike',
      c.health.loss_spike,
      'would call every other loss a spike',
      'choose a factor above 1, e.g. 4, or 0 for none',
    )
  _check_geometry(c)
  resize = c.augment.resize
  if resize.min > resize.max or (resize.max and not resize.min):
    raise errors.ConfigError(
      'augment.resize.min',
      resize.min,
      f'does not go with augment.resize.max={resize.max}',
      'choose 0 < min <= max, e.g. 224 and 288, or both 0',
    )
  _check_starts(c.model)
  _check_epsilons(c.eval.epsilons)
  for rule in c.sharding:
    if not _is_rule(rule):
      raise errors.ConfigError(
        'sharding',
        rule,
        'is not a rule',
        'write (regular expression, (axis, axes or None, …)), see '
        'lipnext_jax/config/fields.py',
      )


def _check_geometry(c: ml_collections.ConfigDict) -> None:
  """Raises if training and evaluation would see images of different scales."""
  d, trained = c.dataset, c.augment.resize
  if d.name not in sources.VARYING:
    return
  if d.name in ('tfds', 'hf') and not d.image_size:  # Images keep their size.
    if d.resize:
      raise errors.ConfigError(
        'dataset.resize',
        d.resize,
        'has no effect with dataset.image_size=0',
        'set both or neither',
      )
    return
  size = d.image_size or sources.IMAGE_SIZE
  resize = d.resize or size
  problem = ''
  if resize < size:
    problem = f'is below the {size} pixels that are cut out of the image'
  elif resize > 2 * size:
    problem = (
      f'leaves {100 * size**2 // resize**2} % of an image, {size}×{size} pixels'
    )
  elif trained.max and not trained.min <= resize <= trained.max:
    problem = (
      f'is a scale that augment.resize={trained.min} … {trained.max} never '
      'trains at'
    )
  if problem:
    raise errors.ConfigError(
      'dataset.resize',
      resize,
      problem,
      f'choose {size} … {2 * size}, or 0 for dataset.image_size={size}',
    )


def _check_starts(c: ml_collections.ConfigDict) -> None:
  """Raises if a parametrization cannot represent its initial matrices."""
  if c.parametrization == 'none':
    return
  starts = parametrizations.PARAMETRIZATIONS[c.parametrization].initializers
  for field in ('r_init', 'm_init'):
    if c[field] not in starts:
      raise errors.ConfigError(
        f'model.{field}',
        c[field],
        f'is out of reach of model.parametrization={c.parametrization}',
        f'choose {" or ".join(starts)}',
      )


def _check_epsilons(epsilons: tuple[float, ...]) -> None:
  """Raises unless there is a radius, and every radius is a number >= 0."""
  numbers = all(isinstance(e, int | float) and e >= 0 for e in epsilons)
  if not epsilons or not numbers:
    raise errors.ConfigError(
      'eval.epsilons',
      epsilons,
      'is not a list of radii',
      'give numbers >= 0 in [0, 1] pixel units, e.g. (0.25, 0.5)',
    )


def _is_rule(rule: Any) -> bool:
  """Returns whether a rule is a pair of regular expression and spec."""
  try:
    pattern, spec = rule
    re.compile(pattern)
    entries = [[e] if isinstance(e, str) else e for e in spec if e is not None]
    axes = itertools.chain(*entries)
    return not isinstance(spec, str) and all(isinstance(a, str) for a in axes)
  except (TypeError, ValueError, re.error):
    return False


def check_image(
  c: ml_collections.ConfigDict, image_shape: tuple[int, int, int]
) -> None:
  """Raises if a model does not fit the images of a dataset.

  Args:
    c: `config.model`.
    image_shape: (height, width, channels).

  Raises:
    ConfigError: patches do not divide the images, or BRONet's kernels are
      larger than the grid of patches.
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


def check_width_sharding(c: ml_collections.ConfigDict, shards: int) -> None:
  """Raises if the channels of a model cannot be split over devices.

  Args:
    c: `config.model`.
    shards: number of devices that share the channels, `mesh.tensor`.

  Raises:
    ConfigError: the model, its parametrization or its activation does not
      allow it.
  """
  if shards == 1:
    return
  if c.name != 'lipnext' or c.parametrization != 'none':
    raise errors.ConfigError(
      'mesh.tensor',
      shards,
      f'cannot split model.name={c.name}, model.parametrization='
      f'{c.parametrization}',
      'set mesh.tensor=1',
    )
  if c.activation != 'beta_abs':
    raise errors.ConfigError(
      'model.activation',
      c.activation,
      'pairs channels that mesh.tensor would separate',
      "set mesh.tensor=1 or model.activation='beta_abs'",
    )
