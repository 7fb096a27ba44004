"""LipNeXt on ImageNet (224×224, 1000 classes): L64W8192, 5.4B parameters.

    python -m lipnext_jax.data.prepare imagenet --data_dir=/data --source=DIR
    python -m lipnext_jax.main --config=configs/imagenet_8b.py \
      --workdir=runs/imagenet_8b --config.dataset.data_dir=/data \
      --config.dataset.workers=16

Nobody has trained this model, which is four times the paper's largest. It shows
the reach of the layout: 64 chips of 95 GB hold it (docs/pods.md). The recipe is
that of configs/imagenet_2b.py. DIR holds ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, see docs/data.md.

R and M hold 2·64·8192² numbers with a square R, 8.6B; five eighths are stored.
Parameters and optimizer state are split over all devices, whose number must
divide the 64 blocks; otherwise raise `mesh.data`.

The argument `eps1` trains for ε = 1; `smoke`, alone or with it, reduces the run
to two steps of a tiny model on random images.
"""

import ml_collections

from lipnext_jax import config as config_lib
from lipnext_jax.config import recipes

ARGUMENTS = (recipes.EPSILONS, config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  epsilon, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  c = recipes.imagenet('L64W8192', epsilon)
  return config_lib.smoke(c, smoke, image_size=224, num_classes=1000)
