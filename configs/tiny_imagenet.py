"""LipNeXt on Tiny-ImageNet (64×64, 200 classes): L32W2048, 268M parameters.

    python -m lipnext_jax.data.prepare tiny_imagenet --data_dir=/data \
      --source=tiny-imagenet-200.zip
    python -m lipnext_jax.main --config=configs/tiny_imagenet.py \
      --workdir=runs/tiny --config.dataset.data_dir=/data

Published for this recipe, without synthetic data, in per cent; not reproduced
here yet: clean 45.5, CRA@36/255 35.0, CRA@72/255 25.9, CRA@108/255 18.0. The
split 'test' is the official validation split: labels of the official test
images were never published.

Synthetic images are mixed in as configs/cifar10.py says, with
`--config.augment.extra.crop_padding=4`.
`--config=configs/tiny_imagenet.py:smoke` is two steps of a tiny model on random
images.
"""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = config_lib.default_config()
  c.dataset.name = 'tiny_imagenet'
  c.augment.crop_padding = 8
  c.augment.flip = True
  c.augment.randaugment.probability = 0.5

  c.model.depth = 32
  c.model.width = 2048
  c.model.patch_size = 4  # 16×16 tokens.

  c.loss.epsilon = 36 / 255
  c.loss.epsilon_start = 0.1
  c.loss.epsilon_end = 3.0

  c.batch_size = 256
  c.duration = '800 epochs'
  c.optimizer.warmup = '20 epochs'
  return config_lib.smoke(c, arg, image_size=64, num_classes=200)
