"""LipNeXt on CIFAR-10 (32×32, 10 classes): L32W2048 or L32W1024.

    python -m lipnext_jax.data.prepare cifar10 --data_dir=/data \
      --source=cifar-10-python.tar.gz
    python -m lipnext_jax.main --config=configs/cifar10.py:L32W1024 \
      --workdir=runs/cifar10_L32W1024 --config.dataset.data_dir=/data

Published (arXiv 2601.18513, Table 1; no synthetic data), in per cent; not
reproduced here yet (R and M with a square R):

| argument | R and M | clean | CRA@36/255 | CRA@72/255 | CRA@108/255 |
|---|---|---|---|---|---|
| `L32W1024` | 64·2²⁰ | 81.5 | 71.2 | 59.2 | 45.9 |
| `L32W2048`, the default | 256·2²⁰ | 85.0 | 73.2 | 58.8 | 43.3 |

Hardware and time are neither published nor measured here; docs/reproduce.md
counts memory and operations.

To mix in three synthetic images per real one, from an npz file with `image` and
`label`: `--config.dataset.extra_npz=FILE --config.dataset.extra_ratio=3
--config.augment.extra.as_real=False --config.augment.extra.crop_padding=2
--config.augment.extra.flip=True`.

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
  c.dataset.name = 'cifar10'
  c.augment.crop_padding = 4
  c.model.patch_size = 2  # 16×16 tokens.
  return config_lib.smoke(c, smoke, image_size=32, num_classes=10)
