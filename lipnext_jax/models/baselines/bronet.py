"""BRONet: orthogonal convolutions and dense layers by block reflectors.

    W = I − 2 V (VᴴV)⁻¹ Vᴴ      per frequency; V is the transformed kernel

    stem    patches → zero-padded to n = max(c, values) channels → BRO → c
    block   x ↦ σ( BRO(x) + b )
    tail    neck and dense layers, block reflectors too, and head (`dense`)

Every layer is orthogonal, or semi-orthogonal where outputs are cut off, so the
backbone is 1-Lipschitz. Circular padding makes the convolutions exactly
norm-preserving.

Reference: B.-H. Lai, P.-H. Huang, B.-H. Kung, S.-T. Chen, "Enhancing Certified
Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss",
ICML 2025. Differences: the stem is a reflector as well (theirs is an
unconstrained convolution); strides are patches; p [h, w, 1] is LipNeXt's
positional term, needed because circular padding has no edges.

Parameters (s × s kernels, c channels, rank r = ⌊ratio·c⌋):

    stem/spectrum_raw [s, s, n, r], stem/pos [h, w, 1], stem/bias [c]
    blocks/spectrum_raw [l, s, s, c, r], blocks/bias [l, c]
    neck/Q_raw [max(d, h·w·c), …], neck/bias; dense/Q_raw [m, d, …], dense/bias
    head/kernel, head/bias

Explicit: spectrum [(l,) h, w//2 + 1, 2, c, c], neck/Q [d, h·w·c], dense/Q.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models.baselines import convolutions
from lipnext_jax.models.baselines import dense

_normal = nn.initializers.normal(stddev=1.0)  # The map ignores the scale.


class BRONet(dense.Baseline):
  """Classifier from images in [0, 1] to logits, 1-Lipschitz up to the head.

  Attributes, besides those of `dense.Baseline`:
    reflector_ratio: rank of V over the channels; 1/4 in the paper.

  >>> model = BRONet(num_classes=3, depth=1, width=4, patch_size=1)
  >>> images = jnp.full((2, 4, 4, 1), 0.25)
  >>> variables = jax.jit(model.init)(jax.random.key(0), images)
  >>> jax.jit(model.apply)(variables, images).shape
  (2, 3)
  """

  reflector_ratio: float = 1 / 4

  def rank(self, channels: int) -> int:
    """Returns the number of columns of V: ⌊ratio·channels⌋, at least one."""
    return max(1, layers.channel_count(self.reflector_ratio, channels))

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Computes logits [b, k], float32 or wider, of images [b, H, W, ch]."""
    k, c = self.kernel_size, self.width

    def weights_shape(n):
      if self.stored:
        return (h, w // 2 + 1, 2, n, n)
      return (k, k, n, self.rank(n))

    def convolve(x, weights):
      # In float32 or wider: there is no complex bfloat16, and an FFT in it
      # would be no isometry.
      wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      if self.stored:
        return convolutions.apply_spectrum(wide, weights).astype(x.dtype)
      return convolutions.reflect(wide, weights).astype(x.dtype)

    # ------------------------------------------------------------------ stem
    x = self.patches(images)
    b, h, w, values = x.shape
    n = max(c, values)
    weights, pos, bias = dense.Group(
      (
        (f'spectrum{self.raw}', _normal, weights_shape(n)),
        ('pos', dense.zeros, (h, w, 1)),
        ('bias', dense.zeros, (c,)),
      ),
      name='stem',
    )()
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, n - values)))
    x = self.end_stem(convolve(x, weights)[..., :c], pos, bias)

    # ---------------------------------------------------------------- blocks
    stack = dense.Group(
      (
        (f'spectrum{self.raw}', _normal, (self.depth, *weights_shape(c))),
        ('bias', dense.zeros, (self.depth, c)),
      ),
      name='blocks',
    )()

    def block(x, weights):
      spectrum, bias = weights
      return self.activate(convolve(x, spectrum), bias), None

    x, _ = jax.lax.scan(block, x, stack)

    # ------------------------------------------------------------------ tail
    # A neck that widens starts from zero-padded features.
    x = x.reshape(b, -1)
    x = jnp.pad(x, ((0, 0), (0, max(0, self.dense_width - x.shape[1]))))
    return self.classify(x, _normal)

  def raw_q(self, d: int, n: int) -> tuple[int, int]:
    """Returns the shape of V: its rank follows d, as n may be far larger."""
    return n, self.rank(d)

  def map_raw(
    self, group: str, name: str, raw: jax.Array, params: Any
  ) -> jax.Array:
    """Computes the reflectors of every frequency, or Q, the rows of one."""
    del group
    if name == 'Q':
      return parametrizations.block_reflector(raw, self.dense_width)
    grid = params['stem']['pos'].shape[:2]
    return convolutions.reflector_spectrum(raw, grid)
