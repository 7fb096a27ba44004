"""The one place where configs are checked, before anything is touched.

Refuses unknown fields, wrong types, values out of range, unknown choices,
contradictions, and fields that nothing would read. What only the data or the
devices can tell is checked where they are known: `data.sources`,
`check_image` and `check_width_sharding` here, `parallel.mesh`,
`schedules.make_plan`.
"""

from collections.abc import Sequence
import difflib
import math
from typing import Any

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax import losses
from lipnext_jax import schedules
from lipnext_jax import train_step
from lipnext_jax.data import randaugment
from lipnext_jax.data import sources
from lipnext_jax.models import layers
from lipnext_jax.models import lipnext
from lipnext_jax.models import parametrizations
from lipnext_jax.models import registry
from lipnext_jax.optim import recipe
from lipnext_jax.optim import retraction
from lipnext_jax.parallel import sharding


def validate(config: ml_collections.ConfigDict) -> None:
  """Refuses values that are wrong whatever the data and the devices are.

  Raises:
    ConfigError: naming the field, its value and the remedy.
  """
  _check_fields(config)
  fields = config_lib.build_field_list(config)
  for name, choices in _CHOICES.items():
    if fields[name] not in choices:
      raise errors.ConfigError(
        name,
        fields[name],
        'is unknown',
        f'choose one of {", ".join(sorted(choices))}',
      )
  _check_numbers(fields)
  for name in _DURATIONS:
    schedules.parse_duration(name, fields[name])
  _check_model(fields)
  if 4 * config.model.shift_ratio > 1:
    raise errors.ConfigError(
      'model.shift_ratio',
      config.model.shift_ratio,
      'moves more than all channels (4·shift_ratio > 1)',
      'choose at most 0.25 (paper: 1/8 or 1/16)',
    )
  if config.loss.epsilon_end < config.loss.epsilon_start:
    raise errors.ConfigError(
      'loss.epsilon_end',
      config.loss.epsilon_end,
      f'is below loss.epsilon_start={config.loss.epsilon_start}',
      'the training radius never shrinks: swap them',
    )
  if config.eval.split == 'validation' and not config.dataset.holdout:
    raise errors.ConfigError(
      'eval.split',
      'validation',
      'is empty with dataset.holdout=0',
      'hold some training examples out, e.g. dataset.holdout=144',
    )
  if 0 < config.health.loss_spike <= 1:
    raise errors.ConfigError(
      'health.loss_spike',
      config.health.loss_spike,
      'would call every other loss a spike',
      'choose a factor above 1, e.g. 4, or 0 for none',
    )
  sharding.check_rules(config.sharding)
  _check_owned(fields)
  _check_augment(config.augment)
  _check_epsilons(config.eval.epsilons)


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


def check_width_sharding(c: ml_collections.ConfigDict, shards: int) -> None:
  """Refuses models whose channels cannot be split.

  Args:
    c: `config.model`.
    shards: devices that share the channels, `mesh.tensor`.

  Raises:
    ConfigError: naming the field to change.
  """
  if shards == 1:
    return
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


def explain_override(
  argv: Sequence[str], error: Exception
) -> errors.ConfigError:
  """What `--config.x=…` got wrong, for an error that parsing it raised.

  >>> error = explain_override(['--config.model.dept=3'], AttributeError(''))
  >>> str(error)[:64]
  "--config.model.dept='3' is no config field; did you mean model.d"
  """
  known = list(config_lib.build_field_list(config_lib.default_config()))
  for arg in argv:
    name, _, value = arg.lstrip('-').partition('=')
    if not name.startswith('config.'):
      continue
    field = name.removeprefix('config.')
    if field not in known and field + '.' not in ' '.join(known):
      close = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
      return errors.ConfigError(
        f'--{name}',
        value,
        'is no config field',
        f'did you mean {close[0]}? All fields: lipnext_jax/config.py',
      )
  reason = ' '.join(str(error).split())[:300]  # One line, whatever it was.
  return errors.ConfigError(
    'command line', ' '.join(argv[1:]), f'was not understood ({reason})', _HELP
  )


_HELP = 'see `python -m lipnext_jax.main --help` and lipnext_jax/config.py'

_DURATIONS = (
  'duration',
  'optimizer.warmup',
  'optimizer.retraction_period',
  'eval.every',
  'checkpoint.every',
  'log.every',
)

# Numbers are at least 0 unless listed here.
_POSITIVE = (
  'augment.randaugment.ops',
  'batch_size',
  'dataset.resize',
  'dataset.synthetic.channels',
  'dataset.synthetic.image_size',
  'dataset.synthetic.num_classes',
  'dataset.synthetic.test_examples',
  'dataset.synthetic.train_examples',
  'eval.batch_size',
  'eval.monitor_examples',
  'loss.annealing_temperature',
  'loss.epsilon',
  'loss.epsilon_end',
  'loss.logit_scale',
  'microbatches',
  'model.depth',
  'model.patch_size',
  'model.width',
  'model.baseline.dense_width',
  'model.baseline.kernel_size',
  'model.baseline.power_iterations',
  'model.baseline.reflector_ratio',
  'optimizer.learning_rate',
  'optimizer.lookahead_alpha',
)
_AT_MOST_ONE = (
  'augment.randaugment.probability',
  'augment.scale',
  'model.baseline.reflector_ratio',
  'model.beta',
  'optimizer.final_scale',
  'optimizer.lookahead_alpha',
)
# −1 is a choice; `make_mesh` checks.
_ANY_SIGN = ('mesh.data', 'mesh.fsdp', 'mesh.tensor')

_ON_DISK = tuple(
  name for name in sources.SOURCES if name not in ('digits', 'synthetic')
)
_BASELINES = ('liresnet', 'bronet')
# Read where there are matrices on the manifold: by their optimizer, and by the
# two layouts that they alone have.
_MANIFOLD = (
  'optimizer.exponential',
  'optimizer.precision',
  'optimizer.retraction',
  'optimizer.retraction_period',
  'reduce_dtype',
)
# Fields that only some choices of another field read: field → (other, choices).
_OWNED: dict[str, tuple[str, Any]] = {
  'augment.crop_padding': ('augment.resize.max', 0),  # One crop is enough.
  'augment.extra.crop_padding': ('augment.extra.as_real', False),
  'augment.extra.flip': ('augment.extra.as_real', False),
  'model.beta': ('model.activation', 'beta_abs'),
  'model.m_init': ('model.name', 'lipnext'),
  'model.padding': ('model.name', ('lipnext', 'liresnet')),  # BRO: circular.
  'model.parametrization': ('model.name', 'lipnext'),
  'model.r_init': ('model.name', 'lipnext'),
  'model.remat': ('model.name', 'lipnext'),
  'model.shift_ratio': ('model.name', 'lipnext'),
  'model.unroll': ('model.name', 'lipnext'),
  'model.baseline.dense_depth': ('model.name', _BASELINES),
  'model.baseline.dense_width': ('model.name', _BASELINES),
  'model.baseline.kernel_size': ('model.name', _BASELINES),
  'model.baseline.power_iterations': ('model.name', 'liresnet'),
  'model.baseline.reflector_ratio': ('model.name', 'bronet'),
  # The working copy is in it too: float32 products would lose their digits.
  'reduce_dtype': ('model.dtype', 'bfloat16'),
  'loss.trades_weight': ('loss.name', 'trades'),
  'loss.annealing_offset': ('loss.name', 'logit_annealing'),
  'loss.annealing_temperature': ('loss.name', 'logit_annealing'),
  'loss.annealing_gamma': ('loss.name', 'logit_annealing'),
  'dataset.data_dir': ('dataset.name', _ON_DISK),
  'dataset.image_size': ('dataset.name', sources.VARYING),
  'dataset.resize': ('dataset.name', sources.VARYING),
  'dataset.synthetic.image_size': ('dataset.name', 'synthetic'),
  'dataset.synthetic.channels': ('dataset.name', 'synthetic'),
  'dataset.synthetic.num_classes': ('dataset.name', 'synthetic'),
  'dataset.synthetic.train_examples': ('dataset.name', 'synthetic'),
  'dataset.synthetic.test_examples': ('dataset.name', 'synthetic'),
}

# Fields that do nothing while another one is 0, empty, or never ('0 steps').
_NEEDS = {
  'augment.extra.as_real': 'dataset.extra_ratio',
  'augment.randaugment.magnitude': 'augment.randaugment.probability',
  'augment.randaugment.ops': 'augment.randaugment.probability',
  'dataset.extra_npz': 'dataset.extra_ratio',
  'dataset.extra_ratio': 'dataset.extra_npz',
  'optimizer.lookahead_alpha': 'optimizer.lookahead_period',
  'optimizer.retraction': 'optimizer.retraction_period',
}

_CHOICES: dict[str, Any] = {
  'dataset.name': sources.SOURCES,
  'model.name': registry.MODELS,
  'model.padding': layers.PADDINGS,
  'model.r_init': parametrizations.ORTHOGONAL,
  'model.m_init': parametrizations.ORTHOGONAL,
  'model.dtype': config_lib.DTYPES,
  'model.precision': config_lib.PRECISIONS,
  'model.remat': lipnext.REMAT_POLICIES,
  'model.activation': layers.ACTIVATIONS,
  'model.parametrization': parametrizations.CHOICES,
  'loss.name': losses.LOSSES,
  'eval.split': sources.FINAL_SPLITS,
  'eval.certificate': evaluate.CERTIFICATES,
  'eval.checkpoint': ('last', 'best'),
  'optimizer.name': train_step.INNER_RULES,
  'optimizer.retraction': retraction.METHODS,
  'optimizer.exponential': recipe.EXPONENTIALS,
  'optimizer.precision': config_lib.PRECISIONS,
  'optimizer.mu_dtype': config_lib.DTYPES,
  'reduce_dtype': config_lib.DTYPES,
}


def _check_fields(config) -> None:
  """The fields are those of `default_config`, and of their types."""
  defaults = config_lib.build_field_list(config_lib.default_config())
  fields = config_lib.build_field_list(config)
  for name in [*fields, *defaults]:
    if name not in defaults:
      close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.0)
      raise errors.ConfigError(
        name, fields[name], 'is no config field', f'did you mean {close[0]}?'
      )
    if name not in fields:
      raise errors.ConfigError(
        name,
        None,
        'is missing',
        'start from default_config()',
      )
    value, kind = fields[name], type(defaults[name])
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
      raise errors.ConfigError(
        name, value, f'is no {kind.__name__}', f'e.g. {defaults[name]!r}'
      )


def _check_numbers(fields: dict[str, Any]) -> None:
  for name, value in fields.items():
    if isinstance(value, bool) or not isinstance(value, int | float):
      continue
    if not math.isfinite(value) or (value < 0 and name not in _ANY_SIGN):
      problem, remedy = 'is out of range', 'choose a finite number, at least 0'
    elif value == 0 and name in _POSITIVE:
      problem, remedy = 'is out of range', 'choose a number above 0'
    elif value > 1 and name in _AT_MOST_ONE:
      problem, remedy = 'is out of range', 'choose from [0, 1]'
    elif abs(value) >= 2**31:
      problem, remedy = 'is out of range', 'choose a number below 2**31'
    else:
      continue
    raise errors.ConfigError(name, value, problem, remedy)


def _check_owned(fields: dict[str, Any]) -> None:
  """A field that nothing reads must not be set: it would do nothing."""
  defaults = config_lib.build_field_list(config_lib.default_config())
  for name, (owner, choices) in _OWNED.items():
    choices = choices if isinstance(choices, tuple) else (choices,)
    if fields[name] != defaults[name] and fields[owner] not in choices:
      raise errors.ConfigError(
        name,
        fields[name],
        f'has no effect with {owner}={fields[owner]!r}',
        f'set it to its default, {defaults[name]!r}, or set {owner} to '
        f'{" or ".join(map(repr, choices))}',
      )
  for name, needed in _NEEDS.items():
    if fields[name] != defaults[name] and _is_off(needed, fields[needed]):
      raise errors.ConfigError(
        name,
        fields[name],
        f'has no effect with {needed}={fields[needed]!r}',
        f'set it to its default, {defaults[name]!r}, or set {needed}',
      )


def _is_off(name: str, value: Any) -> bool:
  """Whether a field is 0, empty, or a duration that never comes."""
  if name in _DURATIONS:
    number, _ = schedules.parse_duration(name, value)
    return number == 0
  return not value


def _check_model(fields: dict[str, Any]) -> None:
  """What a model's kind rules out."""
  name, map_name = fields['model.name'], fields['model.parametrization']
  defaults = config_lib.build_field_list(config_lib.default_config())
  if fields['eval.certificate'] == 'rigorous' and name != 'lipnext':
    raise errors.ConfigError(
      'eval.certificate',
      'rigorous',
      f'covers model.name=lipnext alone, not {name}',
      'choose fast',
    )
  if map_name != 'none':
    starts = parametrizations.PARAMETRIZATIONS[map_name].initializers
    for field in ('model.r_init', 'model.m_init'):
      if fields[field] not in starts:
        raise errors.ConfigError(
          field,
          fields[field],
          f'is out of reach of model.parametrization={map_name}',
          f'choose {" or ".join(starts)}',
        )
  if name == 'lipnext' and map_name == 'none':
    return
  for field in _MANIFOLD:
    if fields[field] != defaults[field]:
      raise errors.ConfigError(
        field,
        fields[field],
        f'has no effect with model.name={name}, model.parametrization='
        f'{map_name}: no matrix is optimised on the manifold',
        f'set it to its default, {defaults[field]!r}',
      )


def _check_augment(augment: ml_collections.ConfigDict) -> None:
  if augment.randaugment.magnitude >= randaugment.BINS:
    raise errors.ConfigError(
      'augment.randaugment.magnitude',
      augment.randaugment.magnitude,
      'is out of range',
      f'choose from 0 … {randaugment.BINS - 1}',
    )
  resize = augment.resize
  if resize.min > resize.max or (resize.max and not resize.min):
    raise errors.ConfigError(
      'augment.resize.min',
      resize.min,
      f'does not go with augment.resize.max={resize.max}',
      'choose 0 < min <= max, e.g. 224 and 288, or both 0',
    )


def _check_epsilons(epsilons: tuple[float, ...]) -> None:
  numbers = all(isinstance(e, int | float) and e >= 0 for e in epsilons)
  if not epsilons or not numbers:
    raise errors.ConfigError(
      'eval.epsilons',
      epsilons,
      'is no list of radii',
      'give numbers >= 0 in [0, 1] pixel units, e.g. (0.25, 0.5)',
    )
