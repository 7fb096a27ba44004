"""LipNeXt on CIFAR-100 (32×32, 100 classes): L32W2048, 268M parameters.

    python -m lipnext_jax.data.prepare cifar100 --data_dir=/data \
      --source=cifar-100-python.tar.gz
    python -m lipnext_jax.main --config=configs/cifar100.py \
      --workdir=runs/cifar100 --config.dataset.data_dir=/data

Published for this recipe, without synthetic data, in per cent; not reproduced
here yet: clean 57.4, CRA@36/255 44.1, CRA@72/255 31.9, CRA@108/255 22.2.

Synthetic images are mixed in as configs/cifar10.py says.
`--config=configs/cifar100.py:smoke` is two steps of a tiny model on random
images.
"""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = config_lib.default_config()
  c.dataset.name = 'cifar100'
  c.augment.crop_padding = 4
  c.augment.flip = True
  c.augment.randaugment.probability = 0.5

  c.model.depth = 32
  c.model.width = 2048
  c.model.patch_size = 2  # 16×16 tokens.

  c.loss.epsilon = 36 / 255
  c.loss.epsilon_start = 0.1
  c.loss.epsilon_end = 3.0

  c.batch_size = 256
  c.duration = '800 epochs'
  c.optimizer.warmup = '20 epochs'
  return config_lib.smoke(c, arg, image_size=32, num_classes=100)
