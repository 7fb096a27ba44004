"""LipNeXt on CIFAR-100 (32×32, 100 classes): L32W2048 or L32W1024.

    python -m lipnext_jax.data.prepare cifar100 --data_dir=/data \
      --source=cifar-100-python.tar.gz
    python -m lipnext_jax.main --config=configs/cifar100.py \
      --workdir=runs/cifar100 --config.dataset.data_dir=/data

Published (arXiv 2601.18513, Table 1; no synthetic data), in per cent; not
reproduced here yet:

| argument | R and M | clean | CRA@36/255 | CRA@72/255 | CRA@108/255 |
|---|---|---|---|---|---|
| `L32W1024` | 64·2²⁰ | | | | |
| `L32W2048`, the default | 256·2²⁰ | 57.4 | 44.1 | 31.9 | 22.2 |

Hardware and time are neither published nor measured here; docs/reproduce.md
counts memory and operations. configs/cifar10.py says how synthetic images are
mixed in.

The argument `smoke`, alone or with another (`:L32W1024,smoke`), reduces the run
to two steps of a tiny model on random images.
"""

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes

ARGUMENTS = (('L32W2048', 'L32W1024'), config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  size, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  c = recipes.small_images(size)
  c.dataset.name = 'cifar100'
  c.augment.crop_padding = 4
  c.model.patch_size = 2  # 16×16 tokens.
  return config_lib.smoke(c, smoke, image_size=32, num_classes=100)
