"""LipNeXt on scikit-learn's handwritten digits (8×8 grey, 10 classes).

    python -m lipnext_jax.main --config=configs/digits.py --workdir=runs/digits

Every example ships inside scikit-learn: no download. `--config=configs/
digits.py:smoke` is the same run in two steps.
"""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = config_lib.default_config()
  c.dataset.name = 'digits'

  c.model.depth = 8
  c.model.width = 128
  c.model.patch_size = 4

  c.loss.epsilon = 0.25
  c.loss.epsilon_end = 2.2
  c.loss.logit_scale = 7.0

  c.batch_size = 32
  c.duration = '150 epochs'
  c.optimizer.learning_rate = 5e-3
  c.optimizer.warmup = '10 epochs'

  c.eval.batch_size = 360
  c.eval.epsilons = (36 / 255, 0.25, 0.5, 1.0)
  c.eval.every = '25 epochs'
  c.checkpoint.every = '5 epochs'
  return config_lib.smoke(c, arg)
