"""All config fields with their defaults, and the one place that checks them.

A config file starts from `default_config()` and changes what it needs; the
command line changes any field: `--config.model.depth=16`.

Durations are strings in 'steps', 'epochs' or 'examples' ('150 epochs'); they
become steps in `lipnext_jax.schedules.make_plan` and nowhere else, so that
overriding the batch size never leaves a stale schedule.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import difflib
import math
from typing import Any

import ml_collections

from lipnext_jax import errors
from lipnext_jax import losses
from lipnext_jax import schedules
from lipnext_jax import train_step
from lipnext_jax.data import sources
from lipnext_jax.models import initializers
from lipnext_jax.models import layers
from lipnext_jax.models import lipnext
from lipnext_jax.models import registry
from lipnext_jax.optim import retraction

# Fields that may differ between the runs that share a workdir: they decide
# neither the model nor the sequence of updates.
FREE_FIELDS = (
  'checkpoint',
  'eval',
  'log',
  'mesh',
  'sharding',
  'dataset.data_dir',
  'dataset.workers',
)


def default_config() -> ml_collections.ConfigDict:
  """Every field there is; the paper's values where it gives them."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # Of the initialisation, the data order and the augmentation.

  c.dataset = ml_collections.ConfigDict()
  c.dataset.name = 'digits'  # A key of `data.sources.SOURCES`.
  c.dataset.data_dir = ''  # Where prepared sets lie ('npz').
  c.dataset.holdout = 0  # Training examples set aside as 'validation'.
  c.dataset.workers = 0  # Grain worker processes; 0: threads.
  # For dataset.name='synthetic': random images of any shape.
  c.dataset.synthetic = ml_collections.ConfigDict()
  c.dataset.synthetic.image_size = 32
  c.dataset.synthetic.channels = 3
  c.dataset.synthetic.num_classes = 10
  c.dataset.synthetic.train_examples = 1024
  c.dataset.synthetic.test_examples = 256

  # Train transforms, drawn per example and epoch; the defaults change nothing.
  c.augment = ml_collections.ConfigDict()
  c.augment.crop_padding = 0  # Zero-pad so many pixels, crop back at random.
  c.augment.flip = False  # Horizontally, with probability 1/2.
  c.augment.rotate = 0.0  # Up to so many degrees, either way.
  c.augment.scale = 0.0  # Log-uniform zoom of each axis, and shear, up to this.
  c.augment.translate = 0.0  # Up to so many pixels, subpixel, either way.
  c.augment.warp = 0.0  # Smooth random displacements of this deviation, pixels.

  c.model = ml_collections.ConfigDict()
  c.model.name = 'lipnext'  # A key of `models.registry.MODELS`.
  c.model.depth = 32  # Blocks, L.
  c.model.width = 1024  # Channels, C.
  c.model.patch_size = 2  # Side of the stem's patches; 16×16 tokens on 32².
  c.model.shift_ratio = 1 / 8  # α, per direction (paper: 1/8 or 1/16).
  c.model.beta = 0.5  # Share of rectified channels (0.5 is MinMax, rotated).
  c.model.padding = 'circular'  # Of the shift: 'circular' or 'zero'.
  c.model.r_init = 'haar'  # R and the stem: 'haar' or 'identity'.
  c.model.m_init = 'identity'  # M: 'haar' or 'identity'.
  c.model.dtype = 'float32'  # Compute dtype; parameters are float32.
  c.model.precision = 'default'  # Of training products; evaluation: highest.
  c.model.remat = 'none'  # 'none', 'products' or 'block' (least memory).
  c.model.fuse = 'auto'  # M Rᵀ as one matrix: 'auto' (by shape), 'on', 'off'.

  c.loss = ml_collections.ConfigDict()
  c.loss.name = 'emma'  # A key of `losses.LOSSES`.
  c.loss.epsilon = 36 / 255  # ε, ℓ2 in [0, 1] pixel units.
  c.loss.epsilon_start = 0.1  # a: ε_t = ε·(a + (b − a)·min(2 t/T, 1)).
  c.loss.epsilon_end = 3.0  # b.
  c.loss.logit_scale = 1.0  # τ: multiplies the logits inside the loss only.
  c.loss.trades_weight = 1.0  # λ of 'trades'.
  c.loss.annealing_offset = 2.0  # ξ of 'logit_annealing'.
  c.loss.annealing_temperature = 0.75  # T of 'logit_annealing'.
  c.loss.annealing_gamma = 5.0  # γ of 'logit_annealing'.

  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = 'nadam'  # Inner rule, a key of `train_step.INNER_RULES`.
  c.optimizer.learning_rate = 1e-3  # At the peak.
  c.optimizer.warmup = '20 epochs'  # Linear, per step.
  c.optimizer.final_scale = 1e-5  # Last learning rate over the peak (cosine).
  c.optimizer.clip_norm = 3.0  # Global gradient norm; 0: no clipping.
  c.optimizer.lookahead_period = 6  # k, of both geometries; 0: no lookahead.
  c.optimizer.lookahead_alpha = 0.5  # α of both lookaheads.
  c.optimizer.retraction = 'newton_schulz'  # Or 'svd'.
  c.optimizer.retraction_period = '1 epochs'  # '0 steps': never.
  c.optimizer.precision = 'highest'  # Of the manifold step's products.

  c.batch_size = 256  # Per step, over all devices.
  c.duration = '800 epochs'

  # Devices per axis; one of them may be −1: all that remain. 'data' splits the
  # batch only, 'fsdp' the batch and the parameters.
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1
  c.mesh.fsdp = 1
  # (regular expression, spec) on paths of the train state; the first match
  # counts, no match raises. Parameters are row-sharded for the passes, the
  # optimizer's stacks layer-sharded: each device updates whole matrices.
  c.sharding = (
    (r'^params/blocks/(R|M)$', (None, 'fsdp', None)),  # [l, c, c]
    (r'^opt_state/.*blocks/(R|M)$', ('fsdp', None, None)),  # [l, c, c]
    (r'^params/', ()),
    (r'^opt_state/', ()),
    (r'^step$', ()),
  )

  c.eval = ml_collections.ConfigDict()
  c.eval.batch_size = 512
  c.eval.epsilons = (36 / 255, 72 / 255, 108 / 255, 1.0)  # Reported radii.
  c.eval.every = '50 epochs'  # Monitoring, on 'validation' if it exists.
  c.eval.monitor_examples = 1024  # Of the training set, if it does not.
  c.eval.checkpoint = 'last'  # What --mode=eval restores: 'last' or 'best'.

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every = '10 epochs'

  c.log = ml_collections.ConfigDict()
  c.log.every = '1 epochs'
  return c


def validate(config: ml_collections.ConfigDict) -> None:
  """Refuses values that are wrong whatever the data and the devices are.

  Raises:
    ConfigError: naming the field, its value and the remedy.
  """
  _check_fields(config)
  fields = build_field_list(config)
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
  _check_owned(fields)
  _check_epsilons(config.eval.epsilons)


def build_field_list(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Every field as {'model.depth': 32, …}, sorted.

  >>> build_field_list(default_config())['model.depth']
  32
  """
  return dict(sorted(_flatten(config)))


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that two runs must share to share a workdir.

  >>> 'model.depth' in identity(default_config())
  True
  >>> 'log.every' in identity(default_config())
  False
  """

  def free(name):
    return any(name == f or name.startswith(f + '.') for f in FREE_FIELDS)

  fields = build_field_list(config)
  return {name: value for name, value in fields.items() if not free(name)}


def explain_override(
  argv: Sequence[str], error: Exception
) -> errors.ConfigError:
  """What `--config.x=…` got wrong, for an error that parsing it raised.

  >>> error = explain_override(['--config.model.dept=3'], AttributeError(''))
  >>> str(error)[:64]
  "--config.model.dept='3' is no config field; did you mean model.d"
  """
  known = list(build_field_list(default_config()))
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
  return errors.ConfigError(
    'command line', ' '.join(argv), f'was not understood ({error})', _HELP
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
  'batch_size',
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
  'model.depth',
  'model.patch_size',
  'model.width',
  'optimizer.learning_rate',
  'optimizer.lookahead_alpha',
)
_AT_MOST_ONE = (
  'augment.scale',
  'model.beta',
  'optimizer.final_scale',
  'optimizer.lookahead_alpha',
)
_ANY_SIGN = ('mesh.data', 'mesh.fsdp')  # −1 is a choice; `make_mesh` checks.

# Fields that only one choice of another field reads: field → (other, choice).
_OWNED = {
  'loss.trades_weight': ('loss.name', 'trades'),
  'loss.annealing_offset': ('loss.name', 'logit_annealing'),
  'loss.annealing_temperature': ('loss.name', 'logit_annealing'),
  'loss.annealing_gamma': ('loss.name', 'logit_annealing'),
  'dataset.data_dir': ('dataset.name', 'npz'),
  'dataset.synthetic.image_size': ('dataset.name', 'synthetic'),
  'dataset.synthetic.channels': ('dataset.name', 'synthetic'),
  'dataset.synthetic.num_classes': ('dataset.name', 'synthetic'),
  'dataset.synthetic.train_examples': ('dataset.name', 'synthetic'),
  'dataset.synthetic.test_examples': ('dataset.name', 'synthetic'),
}


_CHOICES: dict[str, Any] = {
  'dataset.name': sources.SOURCES,
  'model.name': registry.MODELS,
  'model.padding': layers.PADDINGS,
  'model.r_init': initializers.ORTHOGONAL,
  'model.m_init': initializers.ORTHOGONAL,
  'model.dtype': registry.DTYPES,
  'model.precision': registry.PRECISIONS,
  'model.remat': lipnext.REMAT_POLICIES,
  'model.fuse': registry.FUSE,
  'loss.name': losses.LOSSES,
  'eval.checkpoint': ('last', 'best'),
  'optimizer.name': train_step.INNER_RULES,
  'optimizer.retraction': retraction.METHODS,
  'optimizer.precision': registry.PRECISIONS,
}


def _check_fields(config) -> None:
  """The fields are those of `default_config`, and of their types."""
  defaults = build_field_list(default_config())
  fields = build_field_list(config)
  for name in [*fields, *defaults]:
    if name not in defaults:
      close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.0)
      raise errors.ConfigError(
        name, fields[name], 'is no config field', f'did you mean {close[0]}?'
      )
    if name not in fields:
      raise errors.ConfigError(
        name, None, 'is missing', 'start the config from default_config()'
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
  defaults = build_field_list(default_config())
  for name, (owner, choice) in _OWNED.items():
    if fields[name] != defaults[name] and fields[owner] != choice:
      raise errors.ConfigError(
        name,
        fields[name],
        f'has no effect with {owner}={fields[owner]!r}',
        f'leave it out or set {owner}={choice!r}',
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


def _flatten(config, prefix='') -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _flatten(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
