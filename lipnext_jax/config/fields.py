"""Declares every field of a config once: default, meaning and allowed values.

A config file starts from `default_config()` and changes some fields. The
command line can change any field: `--config.model.depth=16`. `--mode=config`
prints the fields of a config with their values and meanings.

Durations are strings in 'steps', 'epochs' or 'examples' ('150 epochs').
`lipnext_jax.schedules.make_plan` alone converts them to steps, so overriding
the batch size never leaves a stale schedule.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import difflib
import math
import pprint
import textwrap
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import optax

from lipnext_jax import certify
from lipnext_jax import errors
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax import schedules
from lipnext_jax.certify import decimals
from lipnext_jax.data import randaugment
from lipnext_jax.data import sources
from lipnext_jax.models import layers
from lipnext_jax.models import lipnext
from lipnext_jax.models import parametrizations
from lipnext_jax.optim import exponential
from lipnext_jax.optim import retraction

# The dtypes and product precisions that a config can name.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = {
  'default': None,  # The backend's: tf32 or bf16 passes on accelerators.
  'high': jax.lax.Precision.HIGH,
  'highest': jax.lax.Precision.HIGHEST,
  # Operands rounded to bfloat16, sums in float32: what tensor cores do best.
  # XLA for CPUs does not round (jax 0.10.2).
  'bfloat16': jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
}
# Thresholds of `optim.fast_expm1`.
EXPONENTIALS = {'fast': exponential.THRESHOLDS, 'exact': (0.0, 0.0, 0.0)}
# Functions (learning_rate, mu_dtype=None) → optax rule, each elementwise and
# odd, as `optim.orthogonal` requires.
INNER_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
  'nadam': optim.scheduled_nadam,
  'adam': optax.adam,
  'momentum': lambda rate, mu_dtype=None: optax.sgd(
    rate, momentum=0.9, accumulator_dtype=mu_dtype
  ),
  # Without the weight decay that `optax.lion` adds.
  'lion': lambda rate, mu_dtype=None: optax.chain(
    optax.scale_by_lion(mu_dtype=mu_dtype),
    optax.scale_by_learning_rate(rate),
  ),
}
SET: tuple[Any, ...] = ()  # In `only_with`: any value but 0, '' and '0 steps'.


class Field(NamedTuple):
  """A field of a config."""

  default: Any  # All values have its type.
  meaning: str  # Sentence that says what the field decides, and in which unit.
  minimum: float = 0
  above: float | None = None  # Exclusive lower bound, in place of `minimum`.
  maximum: float = math.inf
  choices: Collection[str] = ()  # Names allowed.
  duration: bool = False  # Whether values are durations, such as '20 epochs'.
  # {other field: values, or `SET`}: this field has an effect only while each
  # other field has one of these values; else it must keep its default.
  only_with: Mapping[str, tuple[Any, ...]] = {}
  # Whether the field may change when a run is resumed, because it decides
  # neither the model nor the sequence of updates.
  free: bool = False

  def allowed(self) -> str:
    """Describes the allowed values, e.g. 'at least 1'; '' for any."""
    if self.choices:
      return f'one of {", ".join(sorted(self.choices))}'
    if type(self.default) not in (int, float):
      return ''
    inclusive = self.above is None
    low = self.minimum if inclusive else self.above
    if self.maximum < math.inf:
      return f'in {"[" if inclusive else "("}{low}, {self.maximum}]'
    return f'{"at least" if inclusive else "above"} {low}'

  def check(self, name: str, value: Any) -> None:
    """Raises if a value of the field `name` is wrong by itself.

    Raises:
      ConfigError: the type, the choice or the range is wrong.

    >>> Field(0.5, 'A share.', maximum=1).check('model.beta', 1.5)
    Traceback (most recent call last):
    lipnext_jax.errors.ConfigError: model.beta=1.5 is out of range; choose a \
number that is in [0, 1].
    """
    kind = type(self.default)
    problem, remedy = '', f'choose a number that is {self.allowed()}'
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
      problem = f'is not of type {kind.__name__}'
      remedy = f'write e.g. {self.default!r}'
    elif self.choices and value not in self.choices:
      problem, remedy = 'is unknown', f'choose {self.allowed()}'
    elif self.duration:
      schedules.parse_duration(name, value)
    elif kind in (int, float):
      low = self.minimum if self.above is None else self.above
      # `not low <= value` refuses NaN, too.
      if not low <= value <= self.maximum or value == self.above:
        problem = 'is out of range'
      elif abs(value) >= 2**31:  # Beyond the integers of a device.
        problem, remedy = 'is out of range', 'choose a number below 2**31'
    if problem:
      raise errors.ConfigError(name, value, problem, remedy)


def section(
  only_with: Mapping[str, tuple[Any, ...]] | None = None,
  /,
  **members: Field | dict[str, Field],
) -> dict[str, Field]:
  """Flattens fields and sections to {'field': …, 'section.field': …}.

  `only_with` is added to the conditions of each field. `**section({…}, …)` has
  fields that share a condition beside the others of a section.

  >>> fields = section(model=section(width=Field(8, 'Channels.')))
  >>> fields['model.width'].meaning
  'Channels.'
  """
  return {
    name: field._replace(only_with={**(only_with or {}), **field.only_with})
    for name, field in traverse_util.flatten_dict(members, sep='.').items()
  }


def free(**members: Field | dict[str, Field]) -> dict[str, Field]:
  """Returns a section whose fields may change when a run is resumed."""
  fields = section(**members).items()
  return {name: field._replace(free=True) for name, field in fields}


_ON_DISK = tuple(
  name for name in sources.SOURCES if name not in ('digits', 'synthetic')
)

_DATASET = section(
  name=Field('digits', 'Dataset to train on.', choices=sources.SOURCES),
  data_dir=Field(
    '',
    "Directory of prepared sets; for 'folder', 'hf' and 'npz', the set itself.",
    only_with={'dataset.name': _ON_DISK},
    free=True,
  ),
  set_name=Field(
    '',
    "Name that TFDS gives the set, e.g. 'mnist' or 'imagenette/160px-v2'.",
    only_with={'dataset.name': ('tfds',)},
  ),
  skip_bad=Field(
    False,
    'Whether to leave out files that are not whole images.',
    only_with={'dataset.name': ('folder',)},
  ),
  **section(
    {'dataset.name': sources.USER_SETS},
    test_share=Field(
      0.2,
      'Share of each class held out as the test split of a set without one.',
      above=0,
      maximum=0.5,
    ),
    split_seed=Field(0, 'Seed of the draw of that test split.'),
  ),
  holdout=Field(0, "Training examples set aside as the split 'validation'."),
  workers=Field(0, 'Processes that read the data; 0: threads.', free=True),
  extra_ratio=Field(
    0,
    'Synthetic images mixed in per real one, beyond batch_size.',
    only_with={'dataset.extra_npz': SET},
  ),
  extra_npz=Field(
    '',
    'File of synthetic images: `image` [n, H, W, ch] uint8, `label` [n].',
    only_with={'dataset.extra_ratio': SET},
    free=True,
  ),
  synthetic=section(
    {'dataset.name': ('synthetic',)},
    image_size=Field(32, 'Side of the random images in pixels.', minimum=1),
    channels=Field(3, 'Channels of the random images.', minimum=1),
    num_classes=Field(10, 'Classes of the random images.', minimum=1),
    train_examples=Field(1024, 'Random images to train on.', minimum=1),
    test_examples=Field(256, 'Random images to test on.', minimum=1),
  ),
) | section(  # Sets whose images vary in size.
  {'dataset.name': sources.VARYING},
  image_size=Field(
    0,
    'Side of the images in pixels, as the network sees them; 0: 224, or the '
    'side that all images of a tfds or hf set have.',
  ),
  resize=Field(
    0,
    'Shorter side in pixels to which images are scaled before image_size is '
    'cut out, in evaluation from the centre; 0: image_size.',
  ),
)

# Drawn for each example and epoch by `data.transforms`; the defaults leave
# images as they are.
_AUGMENT = section(
  resize=section(
    min=Field(0, 'Smallest random shorter side in pixels, before a crop.'),
    max=Field(0, 'Largest random shorter side in pixels; 0: no resizing.'),
  ),
  randaugment=section(
    probability=Field(0.0, 'Probability of RandAugment.', maximum=1),
    **section(
      {'augment.randaugment.probability': SET},
      ops=Field(2, 'Operations per image.', minimum=1),
      magnitude=Field(9, 'Their magnitude.', maximum=randaugment.BINS - 1),
    ),
  ),
  crop_padding=Field(
    0,
    'Zeros around an image, in pixels, before a random crop.',
    only_with={'augment.resize.max': (0,)},  # Else resizing crops already.
  ),
  flip=Field(False, 'Whether to flip horizontally with probability 1/2.'),
  rotate=Field(0.0, 'Largest random rotation either way, in degrees.'),
  scale=Field(
    0.0, 'Largest log zoom of an axis, and largest shear.', maximum=1
  ),
  translate=Field(0.0, 'Largest random subpixel shift either way, in pixels.'),
  warp=Field(0.0, 'Standard deviation of smooth displacements, in pixels.'),
  extra=section(
    as_real=Field(
      True,
      'Whether synthetic images are augmented like real ones.',
      only_with={'dataset.extra_ratio': SET},
    ),
    **section(
      {'augment.extra.as_real': (False,)},
      crop_padding=Field(0, 'As augment.crop_padding, for synthetic images.'),
      flip=Field(False, 'As augment.flip, for synthetic images.'),
    ),
  ),
)

_BASELINES = tuple(name for name in models.MODELS if name != 'lipnext')
# Models whose matrices are optimised on the manifold.
_MANIFOLD = {'model.name': ('lipnext',), 'model.parametrization': ('none',)}

# `models.registry` hands each model the fields of this section that it has.
_MODEL = section(
  name=Field('lipnext', 'Model to train.', choices=models.MODELS),
  depth=Field(32, 'Blocks, L; in a baseline, convolutions.', minimum=1),
  width=Field(1024, 'Channels, C.', minimum=1),
  patch_size=Field(2, "Side of the stem's patches in pixels.", minimum=1),
  beta=Field(
    0.5,
    'β: share of rectified channels (0.5 is MinMax, rotated).',
    maximum=1,
    only_with={'model.activation': ('beta_abs',)},
  ),
  padding=Field(
    'circular',
    "Padding of the shift or of convolutions; 'zero' does not keep norms.",
    choices=layers.PADDINGS,
    only_with={'model.name': ('lipnext', 'liresnet')},  # BRONet is circular.
  ),
  dtype=Field(
    'float32', 'Dtype of training; parameters are float32.', choices=DTYPES
  ),
  precision=Field(
    'default',
    'Precision of products in training; evaluation uses the highest.',
    choices=PRECISIONS,
  ),
  activation=Field('beta_abs', 'Activation σ.', choices=layers.ACTIVATIONS),
  position=Field(True, 'Whether the position p is trained; it starts at 0.'),
  baseline=section(
    {'model.name': _BASELINES},
    dense_depth=Field(2, 'Dense layers after the neck.'),
    dense_width=Field(64, 'Features of neck and dense layers.', minimum=1),
    kernel_size=Field(3, 'Side of the kernels.', minimum=1),
    power_iterations=Field(
      10,
      'Power iterations that estimate a ‖W‖ in training.',
      minimum=1,
      only_with={'model.name': ('liresnet',)},
    ),
    reflector_ratio=Field(
      1 / 4,
      'Rank of a reflector over its channels.',
      above=0,
      maximum=1,
      only_with={'model.name': ('bronet',)},
    ),
  ),
) | section(
  {'model.name': ('lipnext',)},
  shift_ratio=Field(
    # The paper found 1/8 and 1/16 best; 1/16 costs a quarter less.
    1 / 16,
    'α: share of channels that move per direction (paper: 1/8 or 1/16).',
    maximum=1 / 4,
  ),
  r_init=Field(
    'haar', 'Initial R and stem.', choices=parametrizations.ORTHOGONAL
  ),
  m_init=Field('identity', 'Initial M.', choices=parametrizations.ORTHOGONAL),
  remat=Field(
    'products',
    "What the backward pass computes again: 'products' all but products, "
    "'block' everything.",
    choices=lipnext.REMAT_POLICIES,
    free=True,  # After a device ran out of memory, a run can go on with less.
  ),
  unroll=Field(
    False,
    'Whether to unroll the loop over blocks: steps 5 to 10 % faster on a GPU, '
    'longer compilation.',
  ),
  pool=Field(
    'l2',
    "End of the network: 'l2' pools over the tokens (paper); 'neck' maps all "
    'tokens, signed and in their places, by one orthogonal matrix.',
    choices=lipnext.POOLS,
  ),
  **section(
    {'model.pool': ('neck',)},
    neck_width=Field(256, 'Features of neck and dense layers.', minimum=1),
    neck_depth=Field(0, 'Dense layers after the neck.'),
  ),
  parametrization=Field(
    'none',
    "Map from free matrices to R, M, Q; 'none' optimises on the manifold.",
    choices=parametrizations.CHOICES,
  ),
)

_LOSS = section(
  name=Field('emma', 'Loss to minimise.', choices=losses.LOSSES),
  epsilon=Field(36 / 255, 'ε: ℓ2 radius in [0, 1] pixel units.', above=0),
  epsilon_start=Field(0.1, 'a of ε_t = ε·(a + (b − a)·min(2 t/T, 1)).'),
  epsilon_end=Field(3.0, 'b of ε_t, the training radius.', above=0),
  logit_scale=Field(1.0, 'τ: factor on the logits, in the loss only.', above=0),
  trades_weight=Field(
    1.0, 'λ of TRADES.', only_with={'loss.name': ('trades',)}
  ),
) | section(
  {'loss.name': ('logit_annealing',)},
  annealing_offset=Field(2.0, 'ξ of annealing.'),
  annealing_temperature=Field(0.75, 'T of annealing.', above=0),
  annealing_gamma=Field(5.0, 'γ of annealing.'),
)

_OPTIMIZER = section(
  name=Field('nadam', 'Elementwise update rule.', choices=INNER_RULES),
  learning_rate=Field(1e-3, 'Learning rate at its peak.', above=0),
  warmup=Field('20 epochs', 'Length of the linear warm-up.', duration=True),
  final_scale=Field(
    1e-5, 'Last learning rate, as a share of its peak.', maximum=1
  ),
  clip_norm=Field(3.0, 'Norm that gradients are clipped to; 0: no clipping.'),
  lookahead_period=Field(
    6, 'Steps between two syncs of the lookahead; 0: no lookahead.'
  ),
  lookahead_alpha=Field(
    0.5,
    'Weight of the fast weights in a lookahead.',
    above=0,
    maximum=1,
    only_with={'optimizer.lookahead_period': SET},
  ),
  mu_dtype=Field('float32', 'Dtype of the first moment.', choices=DTYPES),
) | section(
  _MANIFOLD,
  retraction=Field(
    'newton_schulz',
    'How matrices are retracted to the manifold.',
    choices=retraction.METHODS,
    only_with={'optimizer.retraction_period': SET},
  ),
  retraction_period=Field(
    '1 epochs',
    "Time between two retractions; '0 steps': never.",
    duration=True,
  ),
  exponential=Field(
    'fast',
    "Exponential of a step; 'fast' approximates it for small steps.",
    choices=EXPONENTIALS,
  ),
  precision=Field(
    'highest',
    'Precision of the products of a step on the manifold.',
    choices=PRECISIONS,
  ),
)

# Matrices and their optimizer state are split by layers, so that each device
# updates whole matrices. 'compute/' is the copy that a step works with:
# M [l, c, c] is split into rows over 'fsdp' and columns over 'tensor', and
# R [l, k, c], whose k rows need not divide, into columns over both
# (docs/pods.md).
_SHARDING = (
  (r'blocks/(R|M)_raw$', (None, ('fsdp?',), None)),  # Of a parametrization.
  (r'^compute/blocks/R$', (None, None, ('tensor', 'fsdp'))),
  (r'^compute/blocks/M$', (None, 'fsdp', 'tensor')),
  (r'^params/blocks/(R|M)$', (('data?', 'fsdp', 'tensor'), None, None)),
  (r'^opt_state/.*blocks/(R|M)$', (('data?', 'fsdp', 'tensor'), None, None)),
  (r'^(compute|params|opt_state)/', ()),
  (r'^(step$|health/|sums/)', ()),
)

# At most one size is −1. 'data' sends the least: it goes over slow networks.
_MESH = section(
  data=Field(-1, 'Devices that split the batch; −1: all others.', minimum=-1),
  fsdp=Field(
    1, 'Devices that split batch and parameters; −1: all others.', minimum=-1
  ),
  tensor=Field(
    1, 'Devices that split channels and parameters; −1: all others.', minimum=-1
  ),
)

_EVAL = section(
  split=Field(
    'test',
    "Split of the final numbers; 'validation' is for choosing a config.",
    choices=sources.FINAL_SPLITS,
    only_with={'dataset.holdout': SET},
  ),
  certificate=Field(
    'fast',
    "'fast': float32; 'rigorous': float64 with its rounding subtracted.",
    choices=certify.CERTIFICATES,
    only_with={'model.name': ('lipnext',)},
  ),
  batch_size=Field(512, 'Examples per step of evaluation.', minimum=1),
  epsilons=Field(
    (36 / 255, 72 / 255, 108 / 255, 1.0),
    'ℓ2 radii to report, in [0, 1] pixel units.',
  ),
  every=Field(
    '50 epochs',
    "Time between two evaluations while training; '0 steps': never.",
    duration=True,
  ),
  monitor_examples=Field(
    1024, 'Training examples to evaluate on if none is held out.', minimum=1
  ),
  checkpoint=Field(
    'last', 'Checkpoint that --mode=eval restores.', choices=('last', 'best')
  ),
)

# Checked during training, at log lines.
_HEALTH = section(
  max_skipped=Field(
    10, 'Skipped (not finite) steps in a row that end the run; 0: never.'
  ),
  loss_spike=Field(
    4.0, 'Loss over its running mean that is warned of; 0: never.'
  ),
  patience=Field(
    0.1,
    'Share of the run after which lasting signs of failure, such as the '
    'accuracy of guessing, are reported; 0: never.',
    maximum=1,
  ),
  drift=Field(
    1e-3, '‖XᵀX − I‖₂ of an orthogonal X that is warned of; 0: never.'
  ),
)

FIELDS = section(
  seed=Field(0, 'Seed of initialisation, data order and augmentation.'),
  dataset=_DATASET,
  augment=_AUGMENT,
  model=_MODEL,
  loss=_LOSS,
  optimizer=_OPTIMIZER,
  batch_size=Field(256, 'Real examples per step, on all devices.', minimum=1),
  microbatches=Field(
    1, 'Parts of a batch whose gradients are added up in turn.', minimum=1
  ),
  reduce_dtype=Field(
    'float32',
    "Dtype in which devices add up the matrices' gradients; 'bfloat16' halves "
    'what is sent, and the working copy.',
    choices=DTYPES,
    # The working copy has this dtype, too: float32 products would lose digits.
    only_with={**_MANIFOLD, 'model.dtype': ('bfloat16',)},
  ),
  duration=Field('800 epochs', 'Length of training.', duration=True),
  **free(
    mesh=_MESH,
    sharding=Field(
      _SHARDING,
      '(regular expression, mesh axes) for paths of the train state; the first '
      "match counts. An axis with '?' is left out where it does not divide.",
    ),
    eval=_EVAL,
    checkpoint=section(
      every=Field(
        '10 epochs',
        "Time between two checkpoints; '0 steps': only at the end.",
        duration=True,
      ),
    ),
    health=_HEALTH,
    log=section(
      every=Field('1 epochs', 'Time between two log lines.', duration=True),
    ),
  ),
)


def default_config() -> ml_collections.ConfigDict:
  """Returns a config of all defaults, which are the paper's where it has any.

  >>> default_config().model.depth
  32
  """
  defaults = {name: field.default for name, field in FIELDS.items()}
  return ml_collections.ConfigDict(
    traverse_util.unflatten_dict(defaults, sep='.')
  )


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns all fields as {'model.depth': 32, …}, sorted by name.

  >>> flatten(default_config())['model.depth']
  32
  """
  fields = traverse_util.flatten_dict(config.to_dict(), sep='.')
  return dict(sorted(fields.items()))


def fixed_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the fields that must not change when a run is resumed, sorted.

  >>> 'model.depth' in fixed_fields(default_config())
  True
  >>> 'log.every' in fixed_fields(default_config())
  False
  """
  fields = flatten(config).items()
  return {name: value for name, value in fields if not FIELDS[name].free}


def closest(name: str) -> str:
  """Returns the name of a field that is most similar to a misspelt name.

  >>> closest('model.dept')
  'model.depth'
  """
  return difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]


def describe(config: ml_collections.ConfigDict) -> str:
  """Formats every field of a valid config with its value and meaning.

  >>> print(describe(default_config())[:77])
  seed = 0
      Seed of initialisation, data order and augmentation. At least 0.
  """
  lines = []
  fields = flatten(config)
  for name, field in FIELDS.items():
    value, text = _format(fields[name]), field.meaning
    if fields[name] != field.default:
      value += f'  (default: {_format(field.default)})'
    if field.allowed():
      text += f' {field.allowed().capitalize()}.'
    needs = [
      other + (f'={" or ".join(map(repr, values))}' if values else '')
      for other, values in field.only_with.items()
    ]
    if needs:
      text += f' Only with {" and ".join(needs)}.'
    meaning = textwrap.indent(textwrap.fill(text, 76), ' ' * 4)
    lines += [f'{name} = {value}', meaning]
  return '\n'.join(lines)


def _format(value: Any) -> str:
  """Formats a value as a config file would write it, 36/255 included.

  >>> _format((36 / 255, 0.25, 1.0)), _format('haar')
  ('(36/255, 0.25, 1.0)', "'haar'")
  """
  if isinstance(value, float):
    name = decimals.epsilon_name(value)
    return name if '/' in name else repr(value)
  if value and type(value) is tuple and type(value[0]) is float:
    return f'({", ".join(map(_format, value))})'
  return pprint.pformat(value)
