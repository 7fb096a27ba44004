"""What config files share: their arguments, and the paper's training recipes.

LipNeXt (arXiv 2601.18513) trains as LiResNet++ does (K. Hu, K. Leino, Z. Wang,
M. Fredrikson, "A Recipe for Improved Certifiable Robustness", ICLR 2024). What
is the same for all of its experiments is the default of every field
(`config.default_config`): NAdam at 1e-3, warm-up, cosine, gradients clipped at
3, lookahead, EMMA with τ = 1. The recipes here add what depends on the family
of datasets; the files of `configs/` add the rest.
"""

import re

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax import errors

# Word of a config's argument → (ε, b): ε is ℓ2 in [0, 1] pixel units, and b·ε
# what training ends at. b = 2 is the recipe's; b = 1.5 at ε = 1 is that of the
# published ImageNet baseline for this radius.
_IMAGENET_RADII = {'eps36/255': (36 / 255, 2.0), 'eps1': (1.0, 1.5)}
EPSILONS = tuple(_IMAGENET_RADII)


# The last group of words in every config file's argument.
SMOKE = ('', 'smoke')


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
  chosen: dict[tuple[str, ...], str] = {}
  for word in arg.split(',') if arg else ():
    group = next((g for g in choices if word and word in g), None)
    if group is None:
      known = [known for group in choices for known in group if known]
      raise errors.ConfigError(
        '--config argument',
        word,
        'is unknown',
        f"append nothing, or ':' and any of {', '.join(known)}",
      )
    if group in chosen:
      raise errors.ConfigError(
        '--config argument',
        word,
        f'comes beside {chosen[group]!r}',
        'they exclude each other: keep one',
      )
    chosen[group] = word
  return tuple(chosen.get(group, group[0]) for group in choices)


def smoke(
  config: ml_collections.ConfigDict,
  arg: str,
  *,
  image_size: int = 0,
  num_classes: int = 0,
) -> ml_collections.ConfigDict:
  """Makes a config two steps of a tiny model, if its argument says 'smoke'.

  `--config=configs/X.py:smoke` then runs on a CPU, whatever the config is
  otherwise.

  Args:
    config: is changed.
    arg: the argument of its file, or what `parse_argument` left of it.
    image_size: above 0, random images of this side, in pixels, stand for the
      dataset, which then need not be there.
    num_classes: of the random images.

  Returns:
    `config`.

  Raises:
    ConfigError: an argument that is not in `SMOKE`.

  >>> smoke(config_lib.default_config(), 'smoke').duration
  '2 steps'
  """
  (word,) = parse_argument(arg, SMOKE)
  if not word:
    return config
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
  if image_size:
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    config.microbatches = 1
    config.dataset.name = 'synthetic'
    config.dataset.synthetic.image_size = image_size
    config.dataset.synthetic.num_classes = num_classes
    config.dataset.synthetic.train_examples = 64
    config.dataset.synthetic.test_examples = 64
  return config


def small_images() -> ml_collections.ConfigDict:
  """Makes the config of CIFAR and Tiny-ImageNet, but for set, crop and size.

  It trains for ε = 36/255.

  >>> small_images().loss.epsilon_end
  3.0
  """
  c = config_lib.default_config()
  c.augment.flip = True
  c.augment.randaugment.probability = 0.5

  c.model.remat = 'products'

  c.loss.epsilon = 36 / 255
  c.loss.epsilon_start = 0.1
  c.loss.epsilon_end = 3.0

  c.batch_size = 256
  c.duration = '800 epochs'
  c.optimizer.warmup = '20 epochs'
  return c


def imagenet(epsilon: str) -> ml_collections.ConfigDict:
  """Makes the config of ImageNet at 224×224, but for the size of the model.

  Args:
    epsilon: the radius trained for, a word of `EPSILONS`.

  Raises:
    ConfigError: another word.

  >>> imagenet('eps1').loss.epsilon_end
  1.5
  """
  if epsilon not in _IMAGENET_RADII:
    raise errors.ConfigError(
      'epsilon', epsilon, 'is unknown', f'choose from {", ".join(EPSILONS)}'
    )
  c = config_lib.default_config()
  c.dataset.name = 'imagenet'
  c.augment.resize.min = 224
  c.augment.resize.max = 288
  c.augment.randaugment.probability = 1.0
  c.augment.flip = True

  c.model.patch_size = 14  # 16×16 tokens.
  c.model.dtype = 'bfloat16'
  c.model.remat = 'products'  # On an H200 faster than 'none' and 'block'.

  c.loss.epsilon, c.loss.epsilon_end = _IMAGENET_RADII[epsilon]
  c.loss.epsilon_start = 0.1

  c.batch_size = 1024
  c.duration = '400 epochs'
  c.optimizer.warmup = '20 epochs'
  # The manifold step at tensor-core precision: what its rounding adds to the
  # defect of R and M is squared away by Newton–Schulz, in float32, before it
  # shows (docs/optimizer.md).
  c.optimizer.precision = 'bfloat16'
  c.optimizer.retraction_period = '100 steps'
  c.mesh.data, c.mesh.fsdp = 1, -1  # Parameters over all devices.

  c.eval.epsilons = (36 / 255, 1.0)
  c.eval.every = '10 epochs'
  c.checkpoint.every = '2 epochs'
  return c


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
  """Sets depth and width from the paper's name of a size.

  Args:
    config: is changed.
    size: 'L{blocks}W{channels}'.

  Raises:
    ConfigError: it is no such name.

  >>> c = small_images()
  >>> set_size(c, 'L8W2048')
  >>> c.model.depth, c.model.width
  (8, 2048)
  """
  found = re.fullmatch(r'L(\d+)W(\d+)', size)
  if found is None:
    raise errors.ConfigError(
      'size', size, 'is no size', 'write L{blocks}W{channels}, as L32W2048'
    )
  config.model.depth, config.model.width = map(int, found.groups())
