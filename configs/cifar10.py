"""LipNeXt on CIFAR-10 (32×32, 10 classes): L32W2048, 268M parameters.

    python -m lipnext_jax.data.prepare cifar10 --data_dir=/data \
      --source=cifar-10-python.tar.gz
    python -m lipnext_jax.main --config=configs/cifar10.py \
      --workdir=runs/cifar10 --config.dataset.data_dir=/data

Published for this recipe, without synthetic data, in per cent; not reproduced
here yet. The size is a field:

| | parameters | clean | CRA@36/255 | CRA@72/255 | CRA@108/255 |
|---|---|---|---|---|---|
| `--config.model.width=1024` | 67M | 81.5 | 71.2 | 59.2 | 45.9 |
| as it is (2048) | 268M | 85.0 | 73.2 | 58.8 | 43.3 |

Three synthetic images to each real one (an npz file of `image` and `label`):
`--config.dataset.extra_npz=FILE --config.dataset.extra_ratio=3
--config.augment.extra.as_real=False --config.augment.extra.crop_padding=2
--config.augment.extra.flip=True`.

`--config=configs/cifar10.py:smoke` is two steps of a tiny model on random
images.
"""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = config_lib.default_config()
  c.dataset.name = 'cifar10'
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
  return config_lib.smoke(c, arg, image_size=32, num_classes=10)
