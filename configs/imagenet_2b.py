"""LipNeXt on ImageNet (224×224, 1000 classes): L32W5792, "2B".

    python -m lipnext_jax.data.prepare imagenet --data_dir=/data --source=DIR
    python -m lipnext_jax.main --config=configs/imagenet_2b.py \
      --workdir=runs/imagenet_2b --config.dataset.data_dir=/data \
      --config.dataset.workers=16

DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, see docs/data.md.
The split 'test' is the official validation split. Published (arXiv 2601.18513,
Table 3), in per cent; not reproduced here yet:

| argument | trained for ε | clean | CRA@36/255 | CRA@1 |
|---|---|---|---|---|
| `eps36/255`, the default | 36/255 | 57.0 | 41.2 | |
| `eps1` | 1 | | | 22.4 |

R and M hold 2·32·5792² numbers with a square R; five eighths are stored.
Published time: 17.8 minutes an epoch on 16 H100. Parameters and optimizer
state, 22.5 GiB, are split over all devices, whose number must divide the 32
blocks; otherwise raise `mesh.data`. docs/pods.md says which machines a run
fits.

The argument `smoke`, alone or with another (`:eps1,smoke`), reduces the run to
two steps of a tiny model on random images.
"""

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes

ARGUMENTS = (recipes.EPSILONS, config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  epsilon, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  c = recipes.imagenet('L32W5792', epsilon)
  return config_lib.smoke(c, smoke, image_size=224, num_classes=1000)
