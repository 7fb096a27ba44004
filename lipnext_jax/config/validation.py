"""Checks a config by itself, and against the data and the devices."""

from collections.abc import Mapping
import itertools
import math
import re
from typing import Any

import ml_collections

from lipnext_jax import errors
from lipnext_jax import schedules
from lipnext_jax.config import fields as fields_lib
from lipnext_jax.data import sources
from lipnext_jax.models import parametrizations

FIELDS = fields_lib.FIELDS


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises if a config is wrong whatever the data and the devices are.

  Raises:
    ConfigError: a field is unknown or missing, has a wrong value, has no
      effect, or contradicts another one.
  """
  values = fields_lib.flatten(config)
  for name, value in values.items():
    if name not in FIELDS:
      remedy = f'did you mean {fields_lib.closest(name)}?'
      raise errors.ConfigError(name, value, 'is not a config field', remedy)
  for name, field in FIELDS.items():
    if name not in values:
      remedy = 'start from default_config()'
      raise errors.ConfigError(name, None, 'is missing', remedy)
    field.check(name, values[name])
  for name, field in FIELDS.items():
    if values[name] != field.default:
      _check_is_read(name, values)
  _check_combinations(config)


def _check_is_read(name: str, values: Mapping[str, Any]) -> None:
  """Raises if no code reads a field, given the values of the others."""
  for other, wanted in FIELDS[name].only_with.items():
    value = values[other]
    if FIELDS[other].duration:
      value, _ = schedules.parse_duration(other, value)
    if value not in wanted if wanted else not value:
      choice = f' to {" or ".join(map(repr, wanted))}' if wanted else ''
      raise errors.ConfigError(
        name,
        values[name],
        f'has no effect with {other}={values[other]!r}',
        f'set it to its default, {FIELDS[name].default!r}, or set '
        f'{other}{choice}',
      )


def _check_combinations(c: ml_collections.ConfigDict) -> None:
  """Raises if fields that are valid by themselves contradict each other."""
  if c.loss.epsilon_end < c.loss.epsilon_start:
    raise errors.ConfigError(
      'loss.epsilon_end',
      c.loss.epsilon_end,
      f'is below loss.epsilon_start={c.loss.epsilon_start}',
      'the training radius never shrinks: swap them',
    )
  if c.dataset.name in sources.VARYING:
    _check_scale(c.dataset, c.augment.resize)
  resize = c.augment.resize
  if resize.min > resize.max or (resize.max and not resize.min):
    raise errors.ConfigError(
      'augment.resize.min',
      resize.min,
      f'does not go with augment.resize.max={resize.max}',
      'choose 0 < min <= max, e.g. 224 and 288, or both 0',
    )
  if c.model.parametrization != 'none':
    kind = parametrizations.PARAMETRIZATIONS[c.model.parametrization]
    for field in ('r_init', 'm_init'):
      if c.model[field] not in kind.initializers:
        raise errors.ConfigError(
          f'model.{field}',
          c.model[field],
          f'is out of reach of model.parametrization={c.model.parametrization}',
          f'choose {" or ".join(kind.initializers)}',
        )
  radii = c.eval.epsilons
  numbers = all(isinstance(e, int | float) and e >= 0 for e in radii)
  if not radii or not numbers:
    raise errors.ConfigError(
      'eval.epsilons',
      radii,
      'is not a list of radii',
      'give numbers >= 0 in [0, 1] pixel units, e.g. (0.25, 0.5)',
    )
  for rule in c.sharding:
    if not _is_rule(rule):
      raise errors.ConfigError(
        'sharding',
        rule,
        'is not a rule',
        'write (regular expression, (axis, axes or None, …)), see '
        'lipnext_jax/config/fields.py',
      )


def _check_scale(d, trained) -> None:
  """Raises if training and evaluation would see images of different scales."""
  if d.name in ('tfds', 'hf') and not d.image_size:  # Images keep their size.
    if d.resize:
      problem = 'has no effect with dataset.image_size=0'
      remedy = 'set both or neither'
      raise errors.ConfigError('dataset.resize', d.resize, problem, remedy)
    return
  size = d.image_size or sources.IMAGE_SIZE
  resize = d.resize or size
  if resize < size:
    problem = f'is below the {size} pixels that are cut out of the image'
  elif resize > 2 * size:
    share = 100 * size**2 // resize**2
    problem = f'leaves {share} % of an image, {size}×{size} pixels'
  elif trained.max and not trained.min <= resize <= trained.max:
    problem = (
      f'is a scale that augment.resize={trained.min} … {trained.max} never '
      'trains at'
    )
  else:
    return
  remedy = f'choose {size} … {2 * size}, or 0 for dataset.image_size={size}'
  raise errors.ConfigError('dataset.resize', resize, problem, remedy)


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
  """Raises if a `config.model` does not fit images [height, width, channels].

  Raises:
    ConfigError: patches do not divide the images, or BRONet's kernels are
      larger than the grid of patches.
  """
  height, width, _ = image_shape
  common = math.gcd(height, width)
  if common % c.patch_size:
    fits = [str(k) for k in range(1, common + 1) if common % k == 0]
    problem = f'does not divide images of {height}×{width} pixels'
    remedy = f'choose one of {", ".join(fits)}'
    raise errors.ConfigError('model.patch_size', c.patch_size, problem, remedy)
  grid = height // c.patch_size, width // c.patch_size
  if c.name == 'bronet' and c.baseline.kernel_size > min(grid):
    raise errors.ConfigError(
      'model.baseline.kernel_size',
      c.baseline.kernel_size,
      f'exceeds the grid of {grid[0]}×{grid[1]} patches',
      f'choose at most {min(grid)}, or a smaller model.patch_size',
    )


def check_width_sharding(c: ml_collections.ConfigDict, shards: int) -> None:
  """Raises if `mesh.tensor` devices cannot share a `config.model`'s channels.

  Raises:
    ConfigError: the model, its parametrization or its activation does not
      allow it.
  """
  if shards == 1:
    return
  if c.name != 'lipnext' or c.parametrization != 'none':
    model = f'model.name={c.name}, model.parametrization={c.parametrization}'
    problem, remedy = f'cannot split {model}', 'set mesh.tensor=1'
    raise errors.ConfigError('mesh.tensor', shards, problem, remedy)
  if c.activation != 'beta_abs':
    problem = 'pairs channels that mesh.tensor would separate'
    remedy = "set mesh.tensor=1 or model.activation='beta_abs'"
    raise errors.ConfigError('model.activation', c.activation, problem, remedy)
