"""The paper's study of width and depth: 400 classes of ImageNet, ε = 1.

    python -m lipnext_jax.data.prepare imagenet --data_dir=/data --source=DIR
    python -m lipnext_jax.main \
      --config=configs/imagenet400_scaling.py:L64W2896 \
      --workdir=runs/imagenet400_L64W2896 --config.dataset.data_dir=/data \
      --config.dataset.workers=16

DIR holds the archives of ImageNet, see docs/data.md; the 400 classes are the
paper's. Published (arXiv 2601.18513, Table 4), in per cent; not reproduced here
yet:

| argument | R and M (square R) | clean | CRA@1 |
|---|---|---|---|
| `L32W1024` | 64·2²⁰ | 40.5 | 22.9 |
| `L32W2048`, the default | 256·2²⁰ | | |
| `L32W4096` | 1024·2²⁰ | 51.7 | 30.0 |
| `L8W2048` | 64·2²⁰ | 30.7 | 22.4 |
| `L16W2048` | 128·2²⁰ | | |
| `L64W2048` | 512·2²⁰ | | |
| `L128W2048` | 1024·2²⁰ | 47.5 | 26.9 |
| `L64W2896` | 2·64·2896² | 51.2 | 29.6 |

The paper has figures for the ends of both scales only. Parameters and optimizer
state are split over all devices, whose number must divide the blocks: for 8
blocks on 16 devices, add `--config.mesh.data=2`. Hardware and time are neither
published nor measured here; docs/reproduce.md counts memory and operations.

The argument `smoke`, alone or with another (`:L8W2048,smoke`), reduces the run
to two steps of a tiny model on random images.
"""

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes

SIZES = (
  'L32W2048',
  'L32W1024',
  'L32W4096',
  'L8W2048',
  'L16W2048',
  'L64W2048',
  'L128W2048',
  'L64W2896',
)
ARGUMENTS = (SIZES, config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  size, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  c = recipes.imagenet(size, 'eps1')
  c.dataset.name = 'imagenet400'
  return config_lib.smoke(c, smoke, image_size=224, num_classes=400)
