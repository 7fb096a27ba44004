"""LipNeXt on scikit-learn's handwritten digits (8×8 grey, 10 classes).

    python -m lipnext_jax.main --config=configs/digits.py --workdir=runs/digits

The data are part of scikit-learn. Arguments after a colon: `model=liresnet` and
`model=bronet` train the paper's baselines on the same data with the same loss
(`--config=configs/digits.py:model=bronet`); `smoke`, alone or with one of them,
reduces the run to two steps of a tiny model.

A digit has 4×4 tokens of 2×2 pixels, and a neck in place of the paper's pool.
The configuration was chosen on examples held out of the training split
(`dataset.holdout` and `eval.split` do the same from the command line). At
ε = 0.5, tokens with the paper's pool certified about 5 per cent fewer of these
images than whole digits as single tokens; tokens with a neck certify as many
(80.0 per cent of 360, seed 0; single tokens 80.3 and 80.0, seeds 0 and 1).
docs/results.md has the results of three seeds on the test split.
"""

import ml_collections

from lipnext_jax import config as config_lib

MODELS = ('model=lipnext', 'model=liresnet', 'model=bronet')
ARGUMENTS = (MODELS, config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  model, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  model = model.removeprefix('model=')
  c = config_lib.default_config()
  c.dataset.name = 'digits'
  c.augment.warp = 0.35  # Pixels.

  c.model.depth = 4
  c.model.width = 64
  c.model.patch_size = 2

  c.loss.epsilon = 0.25
  c.loss.epsilon_end = 2.1
  c.loss.logit_scale = 11.0  # A lower τ certifies more at 1, a higher at 0.25.

  c.batch_size = 64
  c.duration = '400 epochs'
  c.optimizer.learning_rate = 5e-3
  c.optimizer.warmup = '10 epochs'

  if model == 'lipnext':
    c.model.pool = 'neck'
    c.model.neck_width = 128
    c.model.neck_depth = 4
  else:
    c.model.name = model
    c.model.activation = 'minmax'
    c.model.depth, c.model.width = 4, 32
    c.model.baseline.dense_depth = 4
    c.model.baseline.dense_width = 128
  if model == 'liresnet':
    c.model.padding = 'zero'
    c.loss.logit_scale = 4.0  # The model's constant K scales logits, too.

  c.eval.batch_size = 360
  c.eval.epsilons = (36 / 255, 0.25, 0.5, 1.0)
  c.eval.every = '50 epochs'
  c.checkpoint.every = '10 epochs'
  return config_lib.smoke(c, smoke)
