"""LipNeXt on ImageNet (224×224, 1000 classes): L64W8192, 8.6B parameters.

    python -m lipnext_jax.data.prepare imagenet --data_dir=/data --source=DIR
    python -m lipnext_jax.main --config=configs/imagenet_8b.py \
      --workdir=runs/imagenet_8b --config.dataset.data_dir=/data \
      --config.dataset.workers=16

Four times the paper's largest model; nobody has trained it, and no number is
published. It is here to show what the layout carries: 64 chips of 95 GB hold
it (docs/pods.md). DIR holds ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, see docs/data.md. The recipe is that of
configs/imagenet_2b.py.

Parameters and optimizer state are spread over all devices; their number has to
divide the 64 blocks, or 'data' is more than 1.
`--config=configs/imagenet_8b.py:smoke` is two steps of a tiny model on random
images.
"""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = config_lib.default_config()
  c.dataset.name = 'imagenet'
  c.augment.resize.min = 224
  c.augment.resize.max = 288
  c.augment.randaugment.probability = 1.0
  c.augment.flip = True

  c.model.depth = 64
  c.model.width = 8192
  c.model.patch_size = 14  # 16×16 tokens.
  c.model.dtype = 'bfloat16'
  c.model.remat = 'block'

  c.loss.epsilon = 36 / 255
  c.loss.epsilon_start = 0.1
  c.loss.epsilon_end = 2.0

  c.batch_size = 1024
  c.duration = '400 epochs'
  c.optimizer.warmup = '20 epochs'
  c.mesh.data, c.mesh.fsdp = 1, -1

  c.eval.epsilons = (36 / 255, 1.0)
  c.eval.every = '10 epochs'
  c.checkpoint.every = '2 epochs'
  return config_lib.smoke(c, arg, image_size=224, num_classes=1000)
