"""Training recipes that several experiments of the paper share.

LipNeXt (arXiv 2601.18513) follows the recipe of LiResNet++ (K. Hu, K. Leino,
Z. Wang, M. Fredrikson, "A Recipe for Improved Certifiable Robustness", ICLR
2024). Settings that all experiments share are the defaults of
`config.default_config`: NAdam at 1e-3, warm-up, cosine, gradients clipped at 3,
lookahead, EMMA with τ = 1. This module adds the settings of a family of
datasets, and the files of `configs/` those of one experiment.
"""

import re

import ml_collections

from lipnext_jax import config as config_lib

# Word of a config's argument → (ε, b). ε is an ℓ2 radius in [0, 1] pixel units;
# training ends at the radius b·ε. b = 2 is the recipe's value, b = 1.5 that of
# the published ImageNet baseline at ε = 1.
_IMAGENET_RADII = {'eps36/255': (36 / 255, 2.0), 'eps1': (1.0, 1.5)}
EPSILONS = tuple(_IMAGENET_RADII)


def small_images() -> ml_collections.ConfigDict:
  """Returns a config for CIFAR or Tiny-ImageNet at ε = 36/255.

  The caller sets dataset, crop, patch and size of the model.

  >>> small_images().loss.epsilon_end
  3.0
  """
  c = config_lib.default_config()
  c.augment.flip = True
  c.augment.randaugment.probability = 0.5

  c.loss.epsilon = 36 / 255
  c.loss.epsilon_start = 0.1
  c.loss.epsilon_end = 3.0

  c.batch_size = 256
  c.duration = '800 epochs'
  c.optimizer.warmup = '20 epochs'
  return c


def imagenet(epsilon: str) -> ml_collections.ConfigDict:
  """Returns a config for ImageNet at 224×224; the caller sets the model's size.

  Args:
    epsilon: word of `EPSILONS` for the radius to train for.

  >>> imagenet('eps1').loss.epsilon_end
  1.5
  """
  c = config_lib.default_config()
  c.dataset.name = 'imagenet'
  c.dataset.resize = 256
  c.augment.resize.min = 224
  c.augment.resize.max = 288
  c.augment.randaugment.probability = 1.0
  c.augment.flip = True

  c.model.patch_size = 14  # 16×16 tokens.
  c.model.dtype = 'bfloat16'

  c.loss.epsilon, c.loss.epsilon_end = _IMAGENET_RADII[epsilon]
  c.loss.epsilon_start = 0.1

  c.batch_size = 1024
  c.duration = '400 epochs'
  c.optimizer.warmup = '20 epochs'
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


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
  """Sets depth and width of a model from the paper's name of its size.

  Args:
    config: config that is changed in place.
    size: 'L{blocks}W{channels}'.

  >>> c = small_images()
  >>> set_size(c, 'L8W2048')
  >>> c.model.depth, c.model.width
  (8, 2048)
  """
  config.model.depth, config.model.width = map(int, re.findall(r'\d+', size))
