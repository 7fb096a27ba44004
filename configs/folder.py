"""LipNeXt on a folder of your own images (docs/your_data.md).

    python -m lipnext_jax.main --config=configs/folder.py --workdir=runs/mine \
      --config.dataset.data_dir=/my/images

The folder holds train/CLASS/IMAGE and test/CLASS/IMAGE (or validation/ or val/
in the place of test/), or CLASS/IMAGE, of which a fifth of each class becomes
the test split. Words after a colon, in any order:

* `size=64`, the default, or `size=32`, `size=96`, `size=128`, `size=224`: side
  in pixels to which images are scaled and cropped;
* `cpu`, the default: L2W192 on 8×8 tokens and a neck of 128, 1200 steps of 64
  images, under ten minutes on two CPU cores;
* `gpu`: L16W1024 on 16×16 tokens and the paper's pool, 40,000 steps of 256
  images, meant for about an hour on one GPU;
* `smoke`: two steps of a tiny model on random images.

`--config.dataset.image_size=…` sets any other side that
`--config.model.patch_size=…` divides. Both models train for ε = 36/255 (ℓ2, in
[0, 1] pixel units), with the paper's schedule.

Measured on 6,000 training images of Fashion-MNIST, written as PNG files (1,000
of them to test, seed 0, `cpu`): clean 85.5, CRA@36/255 84.2, CRA@108/255 81.6,
CRA@1 73.1 per cent, in 3.6 minutes on one CPU core. L4W256 with the paper's
pool and lookahead had 82.5, 79.7, 73.5 and 61.2. With garments in random places
of a canvas of 42×42 pixels, these rows are 74.6, 70.7, 63.8, 50.9 and 75.0,
70.3, 62.5, 46.6. `gpu` has not been measured.
"""

import ml_collections

from lipnext_jax import config as config_lib

SIZES = ('size=64', 'size=32', 'size=96', 'size=128', 'size=224')
ARGUMENTS = (SIZES, ('cpu', 'gpu'), config_lib.SMOKE)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  size, machine, smoke = config_lib.parse_argument(arg, *ARGUMENTS)
  if smoke:  # All sizes have the same smoke config.
    size = SIZES[0]
  c = config_lib.default_config()
  c.dataset.name = 'folder'
  c.dataset.image_size = int(size.removeprefix('size='))

  c.eval.monitor_examples = 256
  # In steps, so that training takes the same time for every folder.
  if machine == 'gpu':
    tokens = 16
    c.model.depth, c.model.width = 16, 1024
    c.model.dtype = 'bfloat16'
    c.optimizer.precision = 'bfloat16'
    c.batch_size, c.duration = 256, '40000 steps'
    c.optimizer.warmup = '1000 steps'
    c.optimizer.retraction_period = '100 steps'
    c.augment.crop_padding = c.dataset.image_size // 8
    c.log.every, c.checkpoint.every = '100 steps', '1000 steps'
    c.eval.every, c.eval.batch_size = '5000 steps', 512
  else:
    tokens = 8
    c.model.depth, c.model.width = 2, 192
    c.model.pool, c.model.neck_width, c.model.neck_depth = 'neck', 128, 2
    c.batch_size, c.duration = 64, '1200 steps'
    c.optimizer.warmup = '60 steps'
    c.optimizer.lookahead_period = 0
    c.optimizer.retraction_period = '25 steps'
    c.log.every, c.checkpoint.every = '25 steps', '100 steps'
    c.eval.every, c.eval.batch_size = '400 steps', 128
  c.model.patch_size = c.dataset.image_size // tokens
  return config_lib.smoke(
    c, smoke, image_size=c.dataset.image_size, num_classes=10
  )
