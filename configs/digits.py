"""LipNeXt on scikit-learn's handwritten digits (8×8 grey, 10 classes)."""

import ml_collections

from lipnext_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  c = config_lib.default_config()
  c.dataset.name = 'digits'
  c.model.depth = 8
  c.model.width = 128
  c.model.patch_size = 4
  c.loss.epsilon = 0.25
  c.loss.epsilon_end = 2.0
  c.loss.logit_scale = 8.0
  c.batch_size = 128
  c.duration = '150 epochs'
  c.optimizer.warmup = '10 epochs'
  c.eval.batch_size = 360
  c.eval.epsilons = (0.25, 0.5, 1.0)
  return c
