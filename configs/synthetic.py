"""LipNeXt on random images of any shape: for dry runs and timings.

    python -m lipnext_jax.main --config=configs/synthetic.py \
      --workdir=runs/dry --config.model.width=512

Each class mixes a fixed pattern into its images, so that a falling loss shows
that a set-up works; the numbers mean nothing else. The argument `smoke` reduces
the run to two steps of a tiny model.
"""

import ml_collections

from lipnext_jax import config as config_lib

ARGUMENTS = (config_lib.SMOKE,)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  (smoke,) = config_lib.parse_argument(arg, *ARGUMENTS)
  c = config_lib.default_config()
  c.dataset.name = 'synthetic'
  c.model.depth = 8
  c.model.width = 256
  c.duration = '100 steps'
  c.batch_size = 64
  c.optimizer.warmup = '10 steps'
  c.eval.every = '0 steps'
  c.eval.batch_size = 64
  c.checkpoint.every = '50 steps'
  c.log.every = '5 steps'
  return config_lib.smoke(c, smoke)
