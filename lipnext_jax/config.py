"""All config fields with their defaults: what can be chosen, and why.

A config file starts from `default_config()` and changes what it needs; the
command line changes any field: `--config.model.depth=16`. What is allowed is
checked in one place, `lipnext_jax.validation`.

Durations are strings in 'steps', 'epochs' or 'examples' ('150 epochs'); they
become steps in `lipnext_jax.schedules.make_plan` and nowhere else, so that
overriding the batch size never leaves a stale schedule.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import errors

# Fields that may differ between the runs that share a workdir: they decide
# neither the model nor the sequence of updates.
FREE_FIELDS = (
  'checkpoint',
  'eval',
  'health',
  'log',
  'mesh',
  'sharding',
  'dataset.data_dir',
  'dataset.extra_npz',
  'dataset.workers',
)


def default_config() -> ml_collections.ConfigDict:
  """Every field there is; the paper's values where it gives them."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # Of the initialisation, the data order and the augmentation.

  c.dataset = ml_collections.ConfigDict()
  c.dataset.name = 'digits'  # A key of `data.sources.SOURCES`.
  # Where prepared sets lie; of 'folder' and 'npz', the folder itself.
  c.dataset.data_dir = ''
  c.dataset.holdout = 0  # Training examples set aside as 'validation'.
  # Of sets whose images vary in size (ImageNet, 'folder'): side of the square
  # that the network sees, 0 for 224; shorter side before evaluation's crop.
  c.dataset.image_size = 0
  c.dataset.resize = 256
  c.dataset.workers = 0  # Grain worker processes; 0: threads.
  # Synthetic images mixed in: so many per real one, in addition to batch_size.
  c.dataset.extra_ratio = 0
  c.dataset.extra_npz = ''  # Their file: `image` [n, H, W, ch] uint8, `label`.
  # For dataset.name='synthetic': random images of any shape.
  c.dataset.synthetic = ml_collections.ConfigDict()
  c.dataset.synthetic.image_size = 32
  c.dataset.synthetic.channels = 3
  c.dataset.synthetic.num_classes = 10
  c.dataset.synthetic.train_examples = 1024
  c.dataset.synthetic.test_examples = 256

  # Train transforms, drawn per example and epoch; the defaults change nothing.
  c.augment = ml_collections.ConfigDict()
  # Shorter side scaled to U{min … max} pixels, then a random crop to the
  # dataset's size (ImageNet); 0: no resize. See `transforms.build_transforms`.
  c.augment.resize = ml_collections.ConfigDict()
  c.augment.resize.min = 0
  c.augment.resize.max = 0
  # RandAugment: operations and their magnitude (0 … 30), with a probability.
  c.augment.randaugment = ml_collections.ConfigDict()
  c.augment.randaugment.probability = 0.0
  c.augment.randaugment.ops = 2
  c.augment.randaugment.magnitude = 9
  c.augment.crop_padding = 0  # Zero-pad so many pixels, crop back at random.
  c.augment.flip = False  # Horizontally, with probability 1/2.
  c.augment.rotate = 0.0  # Up to so many degrees, either way.
  c.augment.scale = 0.0  # Log-uniform zoom of each axis, and shear, up to this.
  c.augment.translate = 0.0  # Up to so many pixels, subpixel, either way.
  c.augment.warp = 0.0  # Smooth random displacements of this deviation, pixels.
  # Of the images of dataset.extra_npz: as above, or these two alone.
  c.augment.extra = ml_collections.ConfigDict()
  c.augment.extra.as_real = True
  c.augment.extra.crop_padding = 0
  c.augment.extra.flip = False

  c.model = ml_collections.ConfigDict()
  c.model.name = 'lipnext'  # Or 'liresnet', 'bronet': `registry.MODELS`.
  c.model.depth = 32  # Blocks, L.
  c.model.width = 1024  # Channels, C.
  c.model.patch_size = 2  # Side of the stem's patches; 16×16 tokens on 32².
  # α, per direction. The paper found 1/8 and 1/16 best; the latter costs a
  # quarter less (docs/models.md).
  c.model.shift_ratio = 1 / 16
  c.model.beta = 0.5  # Share of rectified channels (0.5 is MinMax, rotated).
  c.model.padding = 'circular'  # Of the shift: 'circular' or 'zero'.
  c.model.r_init = 'haar'  # R and the stem: 'haar' or 'identity'.
  c.model.m_init = 'identity'  # M: 'haar' or 'identity'.
  c.model.dtype = 'float32'  # Compute dtype; parameters are float32.
  c.model.precision = 'default'  # Of training products; evaluation: highest.
  # 'none', 'products' (no product twice; fastest) or 'block' (least memory).
  c.model.remat = 'none'
  # No loop over the blocks: longer to compile, 5 to 10 % faster on a GPU.
  c.model.unroll = False
  c.model.activation = 'beta_abs'  # Or 'minmax'.
  c.model.position = True  # Whether p is trained; it starts at 0.
  # 'none': R, M, Q are optimised on the manifold. Or a map from free matrices:
  # 'cayley', 'exponential', 'cholesky', 'block_reflector'.
  c.model.parametrization = 'none'
  # Of the rivals (model.name 'liresnet' or 'bronet'), beside depth (their
  # convolutions), width, patch_size, padding, activation, beta and position.
  c.model.baseline = ml_collections.ConfigDict()
  c.model.baseline.dense_depth = 2  # Dense layers after the neck.
  c.model.baseline.dense_width = 64  # Features of neck and dense layers.
  c.model.baseline.kernel_size = 3  # Side of the kernels.
  c.model.baseline.power_iterations = 10  # LiResNet: of ‖W‖ in training.
  c.model.baseline.reflector_ratio = 1 / 4  # BRONet: rank of V over channels.

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
  c.optimizer.exponential = 'fast'  # Or 'exact', whatever the step's size.
  c.optimizer.precision = 'highest'  # Of the manifold step's products.
  c.optimizer.mu_dtype = 'float32'  # Of the stored first moment, or 'bfloat16'.

  c.batch_size = 256  # Real examples per step, over all devices.
  c.microbatches = 1  # Parts of a batch whose gradients are added up in turn.
  # Of the matrices' gradients where devices add them up ('bfloat16' halves
  # what is sent and the working copy; it goes with that model.dtype only).
  c.reduce_dtype = 'float32'
  c.duration = '800 epochs'

  # Devices per axis; one of them may be −1: all that remain. 'data' splits the
  # batch only, 'fsdp' the batch and the parameters, 'tensor' the channels of
  # every example and the parameters. Over a slow network goes 'data'.
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1
  c.mesh.fsdp = 1
  c.mesh.tensor = 1
  # (regular expression, spec) on paths of the train state; the first match
  # counts, no match raises. An axis with '?' is left out where it would not
  # divide. Matrices are kept in whole layers, with their optimizer state, so
  # that each device updates its own. 'compute/' is the copy that a step works
  # with: M [l, c, c] in rows over 'fsdp' and columns over 'tensor', R [l, k, c]
  # in columns over both, since its k rows need not divide. docs/pods.md.
  c.sharding = (
    (r'blocks/(R|M)_raw$', (None, 'fsdp', None)),  # Mapped into R and M.
    (r'^compute/blocks/R$', (None, None, ('tensor', 'fsdp'))),
    (r'^compute/blocks/M$', (None, 'fsdp', 'tensor')),
    (r'^params/blocks/(R|M)$', (('data?', 'fsdp', 'tensor'), None, None)),
    (r'^opt_state/.*blocks/(R|M)$', (('data?', 'fsdp', 'tensor'), None, None)),
    (r'^(compute|params|opt_state)/', ()),
    (r'^(step$|health/|sums/)', ()),
  )

  c.eval = ml_collections.ConfigDict()
  c.eval.split = 'test'  # Of the final numbers; 'validation' to choose by.
  c.eval.certificate = 'fast'  # float32; 'rigorous': float64, error subtracted.
  c.eval.batch_size = 512
  c.eval.epsilons = (36 / 255, 72 / 255, 108 / 255, 1.0)  # Reported radii.
  c.eval.every = '50 epochs'  # Monitoring, on 'validation' if it exists.
  c.eval.monitor_examples = 1024  # Of the training set, if it does not.
  c.eval.checkpoint = 'last'  # What --mode=eval restores: 'last' or 'best'.

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every = '10 epochs'

  # What is watched while training and read at log lines; 0 switches it off.
  c.health = ml_collections.ConfigDict()
  # Steps whose loss or gradient is not finite are skipped; so many of them in a
  # row end the run.
  c.health.max_skipped = 10
  c.health.loss_spike = 4.0  # Warn of a loss so many times its running mean.
  c.health.drift = 1e-3  # Warn of a ‖XᵀX − I‖₂ above this, X orthogonal.

  c.log = ml_collections.ConfigDict()
  c.log.every = '1 epochs'
  return c


# What a config's names of dtypes and precisions stand for.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
PRECISIONS = {
  'default': None,  # The backend's: tf32 or bf16 passes on accelerators.
  'high': jax.lax.Precision.HIGH,
  'highest': jax.lax.Precision.HIGHEST,
  # Operands rounded to bfloat16, sums in float32: what tensor cores do best.
  'bfloat16': jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
}

# What every config file's argument offers last: nothing, or two steps.
SMOKE = ('', 'smoke')


def smoke(
  config: ml_collections.ConfigDict,
  arg: str,
  *,
  image_size: int = 0,
  num_classes: int = 0,
) -> ml_collections.ConfigDict:
  """What every config file's argument offers: '' or 'smoke'.

  'smoke' makes the config two steps of a tiny model on a CPU, whatever it is
  otherwise: `--config=configs/X.py:smoke`.

  Args:
    config: the one of the file, which is changed.
    arg: its argument, or what `parse_argument` left of it.
    image_size: above 0, random images of this side, in pixels, stand for the
      dataset, which then need not be there.
    num_classes: of the random images.

  Raises:
    ConfigError: any other argument.

  >>> smoke(default_config(), 'smoke').duration
  '2 steps'
  """
  (chosen,) = parse_argument(arg, SMOKE)
  if chosen == 'smoke':
    config.model.depth, config.model.width = 2, 16
    if config.model.name != 'lipnext':
      config.model.baseline.dense_depth = 1
      config.model.baseline.dense_width = 16
    config.batch_size, config.duration = 16, '2 steps'
    config.eval.batch_size = 64
    config.optimizer.warmup = '1 steps'
    config.eval.every = '1 steps'
    config.eval.monitor_examples = 16
    config.checkpoint.every = '1 steps'
    config.log.every = '1 steps'
  if chosen == 'smoke' and image_size:
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    config.microbatches = 1
    config.dataset.name = 'synthetic'
    config.dataset.synthetic.image_size = image_size
    config.dataset.synthetic.num_classes = num_classes
    config.dataset.synthetic.train_examples = 64
    config.dataset.synthetic.test_examples = 64
  return config


def parse_argument(arg: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
  """Reads a config file's argument: words, comma-separated, in any order.

  Args:
    arg: what follows the colon of `--config=configs/X.py:…`.
    *choices: groups of words that exclude each other; the first word of a
      group is its default ('' where none is needed).

  Returns:
    One word of each group.

  Raises:
    ConfigError: a word of no group, naming all there are, or two of one group.

  >>> parse_argument('smoke,W32', ('W16', 'W32'), ('', 'smoke'))
  ('W32', 'smoke')
  >>> parse_argument('', ('W16', 'W32'), ('', 'smoke'))
  ('W16', '')
  """
  chosen: list[str | None] = [None] * len(choices)
  for word in arg.split(',') if arg else ():
    groups = [i for i, group in enumerate(choices) if word and word in group]
    if not groups:
      known = [known for group in choices for known in group if known]
      raise errors.ConfigError(
        '--config argument',
        word,
        'is unknown',
        f"append nothing, or ':' and any of {', '.join(known)}",
      )
    other = chosen[groups[0]]
    if other is not None:
      raise errors.ConfigError(
        '--config argument',
        word,
        f'comes beside {other!r}',
        'they exclude each other: keep one',
      )
    chosen[groups[0]] = word
  return tuple(
    group[0] if word is None else word
    for word, group in zip(chosen, choices, strict=True)
  )


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


def _flatten(config, prefix='') -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _flatten(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
