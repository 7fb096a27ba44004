"""The words after the colon of a config file, and the recipes of training.

LipNeXt (arXiv 2601.18513) follows the recipe of LiResNet++ (K. Hu, K. Leino,
Z. Wang, M. Fredrikson, "A Recipe for Improved Certifiable Robustness", ICLR
2024). Settings that all experiments share are the defaults of
`config.default_config`: 800 epochs of batches of 256, NAdam at 1e-3, 20 epochs
of warm-up, cosine, gradients clipped at 3, lookahead, EMMA with τ = 1 for ε
from 0.1·36/255 to 3·36/255. This module adds the settings of a family of
datasets, and the files of `configs/` those of one experiment.
"""

import itertools
import re

import ml_collections

from lipnext_jax import errors
from lipnext_jax.config import fields

# Last group of words in the argument of every config file.
SMOKE = ('', 'smoke')
# Word of a config's argument → (ε, b). ε is an ℓ2 radius in [0, 1] pixel units;
# training ends at the radius b·ε. b = 2 is the recipe's value, b = 1.5 that of
# the published ImageNet baseline at ε = 1.
_IMAGENET_RADII = {'eps36/255': (36 / 255, 2.0), 'eps1': (1.0, 1.5)}
EPSILONS = tuple(_IMAGENET_RADII)


def parse_argument(arg: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
  """Parses a config file's argument: words in any order, comma-separated.

  Args:
    arg: text after the colon of `--config=configs/X.py:…`.
    *choices: groups of words that exclude each other; the first word of a
      group is its default, '' if the group may be left out.

  Returns:
    One word of each group.

  Raises:
    ConfigError: a word is in none of the groups, or two words are in one.

  >>> parse_argument('smoke,W32', ('W16', 'W32'), ('', 'smoke'))
  ('W32', 'smoke')
  >>> parse_argument('', ('W16', 'W32'), ('', 'smoke'))
  ('W16', '')
  """
  chosen: dict[tuple[str, ...], str] = {}
  for word in arg.split(',') if arg else ():
    group = next((g for g in choices if word and word in g), None)
    if group is None:
      known = ', '.join(filter(None, itertools.chain(*choices)))
      problem, remedy = (
        'is unknown',
        f"append nothing, or ':' and any of {known}",
      )
    elif group in chosen:
      problem, remedy = f'excludes {chosen[group]!r}', 'keep one of them'
    else:
      chosen[group] = word
      continue
    raise errors.ConfigError('--config argument', word, problem, remedy)
  return tuple(chosen.get(group, group[0]) for group in choices)


def smoke(
  config: ml_collections.ConfigDict,
  arg: str,
  *,
  image_size: int = 0,
  num_classes: int = 0,
) -> ml_collections.ConfigDict:
  """Reduces a config to two steps of a tiny model, if `arg` is 'smoke'.

  Args:
    config: config that is changed in place.
    arg: word of the group `SMOKE`, as `parse_argument` returns it.
    image_size: side in pixels of random images that replace the dataset, which
      need not be on the disk then; 0 keeps the dataset.
    num_classes: number of classes of the random images.

  >>> smoke(fields.default_config(), 'smoke').duration
  '2 steps'
  """
  if not arg:
    return config
  config.model.depth, config.model.width = 2, 16
  if config.model.name != 'lipnext':
    config.model.baseline.dense_depth = 1
    config.model.baseline.dense_width = 16
  if config.model.pool == 'neck':
    config.model.neck_width, config.model.neck_depth = 16, 1
  config.batch_size, config.duration = 16, '2 steps'
  config.optimizer.warmup = '1 steps'
  config.eval.update(batch_size=64, every='1 steps', monitor_examples=16)
  config.checkpoint.every = config.log.every = '1 steps'
  if image_size:
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    config.microbatches = 1
    config.dataset.update(name='synthetic', image_size=0, resize=0)
    config.dataset.synthetic.update(
      image_size=image_size,
      num_classes=num_classes,
      train_examples=64,
      test_examples=64,
    )
  return config


def small_images(size: str) -> ml_collections.ConfigDict:
  """Returns a config for CIFAR or Tiny-ImageNet at ε = 36/255.

  The caller sets dataset, crop and patches.

  Args:
    size: depth and width, as in the paper's names: 'L32W2048'.

  >>> small_images('L8W2048').model.depth
  8
  """
  c = _sized(size)
  c.augment.flip = True
  c.augment.randaugment.probability = 0.5
  return c


def imagenet(size: str, epsilon: str) -> ml_collections.ConfigDict:
  """Returns a config for ImageNet at 224×224.

  Args:
    size: depth and width, as in the paper's names: 'L32W4096'.
    epsilon: word of `EPSILONS` for the radius to train for.

  >>> imagenet('L32W4096', 'eps1').loss.epsilon_end
  1.5
  """
  c = _sized(size)
  c.dataset.name = 'imagenet'
  c.dataset.resize = 256
  c.augment.resize.min = 224
  c.augment.resize.max = 288
  c.augment.randaugment.probability = 1.0
  c.augment.flip = True

  c.model.patch_size = 14  # 16×16 tokens.
  c.model.dtype = 'bfloat16'

  c.loss.epsilon, c.loss.epsilon_end = _IMAGENET_RADII[epsilon]

  c.batch_size = 1024
  c.duration = '400 epochs'
  # Manifold steps at tensor-core precision. Their rounding adds to the defect
  # of R and M, which a Newton–Schulz step in float32 squares every 100 steps
  # (docs/optimizer.md).
  c.optimizer.precision = 'bfloat16'
  c.optimizer.retraction_period = '100 steps'
  c.mesh.data, c.mesh.fsdp = 1, -1  # Parameters over all devices.

  c.eval.epsilons = (36 / 255, 1.0)
  c.eval.every = '10 epochs'
  c.checkpoint.every = '2 epochs'
  return c


def _sized(size: str) -> ml_collections.ConfigDict:
  """Returns the default config with depth and width from 'L{depth}W{width}'."""
  c = fields.default_config()
  c.model.depth, c.model.width = map(int, re.findall(r'\d+', size))
  return c
