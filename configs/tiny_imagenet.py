"""LipNeXt on Tiny-ImageNet (64×64, 200 classes): L32W2048.

    python -m lipnext_jax.data.prepare tiny_imagenet --data_dir=/data \
      --source=tiny-imagenet-200.zip
    python -m lipnext_jax.main --config=configs/tiny_imagenet.py \
      --workdir=runs/tiny_imagenet --config.dataset.data_dir=/data

Published (arXiv 2601.18513, Table 1; no synthetic data), in per cent; not
reproduced here yet:

| R and M (square R) | clean | CRA@36/255 | CRA@72/255 | CRA@108/255 |
|---|---|---|---|---|
| 256·2²⁰ | 45.5 | 35.0 | 25.9 | 18.0 |

The split 'test' is the official validation split, because the labels of the
official test images are not public. Hardware and time are neither published nor
measured here; docs/reproduce.md counts memory and operations. To mix in
synthetic images, see configs/cifar10.py, with
`--config.augment.extra.crop_padding=4`.

The argument `smoke` reduces the run to two steps of a tiny model on random
images.
"""

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes

ARGUMENTS = (config_lib.SMOKE,)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  (smoke,) = config_lib.parse_argument(arg, *ARGUMENTS)
  c = recipes.small_images('L32W2048')
  c.dataset.name = 'tiny_imagenet'
  c.augment.crop_padding = 8
  c.model.patch_size = 4  # 16×16 tokens.
  return config_lib.smoke(c, smoke, image_size=64, num_classes=200)
