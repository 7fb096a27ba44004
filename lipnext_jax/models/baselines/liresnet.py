"""LiResNet: linear residual convolutions, an orthogonal tail, GloRo's constant.

    stem    patches → convolution → + p, + bias → σ
    block   x ↦ σ( x + conv(x) + b )
    tail    neck and dense layers, orthogonal by Cholesky, and head (`dense`)

The convolutions are not constrained. Training estimates the Lipschitz constant
K = Π ‖W‖ of the backbone by power iteration, and the loss gets ε·K instead of
ε. `certify.lipschitz_bound` proves a bound from the kernels afterwards.

References: K. Hu, A. Zou, Z. Wang, K. Leino, M. Fredrikson, "Unlocking
Deterministic Robustness Certification on ImageNet", NeurIPS 2023 (linear
residuals, LLN head); K. Hu, K. Leino, Z. Wang, M. Fredrikson, "A Recipe for
Improved Certifiable Robustness", ICLR 2024 (Cholesky, dense tail, EMMA).
Differences: strides are patches; p [h, w, 1] is LipNeXt's positional term (zero
at the start; circular padding has no other).

Parameters (`zero` or `circular` is the padding; s × s kernels, c channels,
d features of m dense layers):

    stem/conv_zero [s, s, patch²·channels, c], stem/pos [h, w, 1], stem/bias [c]
    blocks/conv_zero_raw [l, s, s, c, c], blocks/bias [l, c]
    neck/Q_raw [d, h·w·c], neck/bias; dense/Q_raw [m, d, d], dense/bias
    head/kernel, head/bias

Explicit: blocks/conv_zero (with the identity in it), neck/Q, dense/Q.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax.models import parametrizations
from lipnext_jax.models.baselines import convolutions
from lipnext_jax.models.baselines import dense


def _orthogonal(key, shape, dtype=jnp.float32):
  """Draws orthogonal matrices [..., m, n], which the map leaves as they are."""
  one = nn.initializers.orthogonal()
  if len(shape) == 2:
    return one(key, shape, dtype)
  keys = jax.random.split(key, shape[0])  # A loop: see `for_each`.
  return jax.lax.map(lambda key: one(key, shape[1:], dtype), keys)


class LiResNet(dense.Baseline):
  """Classifier with residual convolutions, from images in [0, 1] to logits.

  Attributes, besides those of `dense.Baseline`:
    power_iterations: power iterations for each ‖W‖ in training.
    padding: 'zero' (as published) or 'circular'.

  >>> model = LiResNet(num_classes=3, depth=1, width=4, patch_size=2)
  >>> images = jnp.full((2, 4, 4, 1), 0.25)
  >>> variables = jax.jit(model.init)(jax.random.key(0), images)
  >>> jax.jit(model.apply)(variables, images).shape
  (2, 3)
  """

  power_iterations: int = 10
  padding: str = 'zero'

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Computes logits [b, k], float32 or wider, of images [b, H, W, ch]."""
    k, c = self.kernel_size, self.width

    def convolve(x, kernel):
      kernel = kernel.astype(x.dtype)
      return convolutions.convolve(x, kernel, self.padding, self.precision)

    # ------------------------------------------------------------------ stem
    x = self.patches(images)
    b, h, w, values = x.shape
    # About an isometry on average: c outputs of variance 1/c each.
    init = nn.initializers.normal(stddev=(k * k * c) ** -0.5)
    kernel, pos, bias = dense.Group(
      (
        (f'conv_{self.padding}', init, (k, k, values, c)),
        ('pos', dense.zeros, (h, w, 1)),
        ('bias', dense.zeros, (c,)),
      ),
      name='stem',
    )()
    x = self.end_stem(convolve(x, kernel), pos, bias)

    # ---------------------------------------------------------------- blocks
    # ‖conv‖₂ starts at about 2/l, the residual stack within a factor of e².
    init = nn.initializers.normal(stddev=1 / (self.depth * k * c**0.5))
    weights = dense.Group(
      (
        (f'conv_{self.padding}{self.raw}', init, (self.depth, k, k, c, c)),
        ('bias', dense.zeros, (self.depth, c)),
      ),
      name='blocks',
    )()

    def block(x, weights):
      kernel, bias = weights
      y = convolve(x, kernel)
      if not self.stored:  # In the kernel, bfloat16 would round I + conv.
        y = x + y
      return self.activate(y, bias), None

    # Unrolled: XLA's CPU convolutions are 20 times slower inside a loop.
    x, _ = jax.lax.scan(block, x, weights, unroll=True)

    # ------------------------------------------------------------------ tail
    return self.classify(x.reshape(b, -1), _orthogonal)

  def lipschitz(self, params: Any) -> jax.Array:
    """Estimates K = ‖stem‖ Π ‖I + conv‖ from below, differentiably.

    The tail's matrices count as 1, which they are up to rounding.
    """
    name = f'conv_{self.padding}'
    explicit = self.explicit_params(params)
    grid = explicit['stem']['pos'].shape[:2]

    def norm(kernel):
      return convolutions.power_iteration(
        kernel, grid, self.padding, self.power_iterations
      )

    blocks = jax.lax.map(norm, explicit['blocks'][name])
    return norm(explicit['stem'][name]) * jnp.prod(blocks)

  def map_raw(self, group: str, name: str, raw: jax.Array, _: Any) -> jax.Array:
    """Computes I + conv as one kernel, or Q."""
    del group
    if name == 'Q':
      return parametrizations.cholesky(raw)
    return convolutions.with_identity(raw)
