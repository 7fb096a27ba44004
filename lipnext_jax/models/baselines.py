"""LiResNet and BRONet, with which LipNeXt's paper compares, from their papers.

    stem    patches → convolution → + p, + bias → σ
    blocks  x ↦ σ( x + conv(x) + b ) in LiResNet, σ( conv(x) + b ) in BRONet
    neck    flatten → Q [d, h·w·c] → + bias → σ
    dense   d → Q [d, d] → + bias → σ, several times
    head    unit rows, as in LipNeXt

Differences: strides are patches; p [h, w, 1] is LipNeXt's positional term (zero
at the start; circular padding has no other).
"""

from collections.abc import Callable
from typing import Any
from typing import ClassVar

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import convolutions
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations

_zeros = nn.initializers.zeros
_normal = nn.initializers.normal(stddev=1.0)  # Reflectors ignore the scale.
# Parameter of a group: name, initializer, shape.
_Leaf = tuple[str, Callable[..., jax.Array], tuple[int, ...]]


class _Group(nn.Module):
  """Group of float32 parameters, returned in the order of the leaves."""

  leaves: tuple[_Leaf, ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, ...]:
    return tuple(self.param(*leaf, jnp.float32) for leaf in self.leaves)


class Baseline(interface.CertifiedModel):
  """Classifier of convolutions with an orthogonal dense tail.

  Attributes, where they differ from those of `LipNeXt`:
    depth: l, number of convolutions after the stem.
    dense_depth: m, number of dense layers after the neck.
    dense_width: d, features of the neck and the dense layers.
    kernel_size: s, side of the kernels.
    activation: 'minmax' (as published) or 'beta_abs'.
    dtype: compute dtype; maps to orthogonal matrices stay in float32.
    stored: whether the parameters are explicit ones.
  """

  EXPLICIT: ClassVar[dict[str, Any]] = {'stored': True}

  num_classes: int
  depth: int
  width: int
  patch_size: int
  dense_depth: int = 2
  dense_width: int = 64
  kernel_size: int = 3
  activation: str = 'minmax'
  beta: float = 0.5
  position: bool = True
  dtype: Dtype = jnp.float32
  precision: jax.lax.PrecisionLike = None
  stored: bool = False

  @property
  def raw(self) -> str:
    """The suffix of mapped leaves."""
    return '' if self.stored else parametrizations.RAW

  @nn.nowrap  # Compact methods of subclasses call it, like the next ones.
  def patches(self, images: jax.Array) -> jax.Array:
    """Cuts centred images [b, H, W, ch] into patches [b, h, w, values]."""
    x = layers.patchify(layers.centre(images), self.patch_size)
    return x.astype(self.dtype)

  @nn.nowrap
  def activate(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes σ(x + b) for x [..., c], b [c]."""
    x = x + layers.per_channel(bias, x)
    return layers.activate(x, self.activation, self.beta)

  @nn.nowrap
  def apply_stem(
    self, x: jax.Array, leaf: _Leaf, convolve: Callable[..., jax.Array]
  ) -> jax.Array:
    """Computes σ(convolve(x, weights) + p + b), weights in `leaf`."""
    leaves = (
      leaf,
      ('pos', _zeros, (*x.shape[1:3], 1)),
      ('bias', _zeros, (self.width,)),
    )
    weights, pos, bias = _Group(leaves, name='stem')()
    x = convolve(x, weights)
    if not self.position:  # p stays 0.
      pos = jax.lax.stop_gradient(pos)
    return self.activate(x + jnp.expand_dims(pos, 0).astype(x.dtype), bias)

  @nn.nowrap
  def apply_blocks(
    self,
    x: jax.Array,
    leaf: _Leaf,
    convolve: Callable[..., jax.Array],
    unroll: bool = False,
  ) -> jax.Array:
    """Repeats σ(convolve(x, weights) + b); `leaf` has the weights of one."""
    name, init, shape = leaf
    leaves = (
      (name, init, (self.depth, *shape)),
      ('bias', _zeros, (self.depth, self.width)),
    )

    def block(x, layer):
      weights, bias = layer
      return self.activate(convolve(x, weights), bias), None

    stack = _Group(leaves, name='blocks')()
    return jax.lax.scan(block, x, stack, unroll=unroll)[0]

  def raw_q(self, d: int, n: int) -> tuple[int, int]:
    """Returns the shape of the raw leaf of a tail's matrix [d, n]."""
    return d, n

  @nn.nowrap
  def classify(self, x: jax.Array, init: Callable[..., jax.Array]) -> jax.Array:
    """Applies neck, dense layers and head; raw matrices start at `init`."""
    d = self.dense_width

    def draw(name, n, *stack):
      shape = (d, n) if self.stored else self.raw_q(d, n)
      leaves = (
        (f'Q{self.raw}', init, (*stack, *shape)),
        ('bias', _zeros, (*stack, d)),
      )
      q, bias = _Group(leaves, name=name)()
      return q if self.stored else self.map_raw(name, 'Q', q, None), bias

    def layer(x, weights):
      q, bias = weights
      q = q.astype(x.dtype)
      y = jnp.einsum('bn,mn->bm', x, q, precision=self.precision)
      return self.activate(y, bias), None

    x, _ = layer(x, draw('neck', x.shape[1]))
    if self.dense_depth:
      x, _ = jax.lax.scan(layer, x, draw('dense', d, self.dense_depth))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return interface.NormalizedHead(self.num_classes, name='head')(x)


def _orthogonal(key, shape, dtype=jnp.float32):
  """Draws orthogonal matrices [..., m, n], which the map leaves as they are."""
  one = nn.initializers.orthogonal()
  if len(shape) == 2:
    return one(key, shape, dtype)
  keys = jax.random.split(key, shape[0])  # A loop: see `for_each`.
  return jax.lax.map(lambda key: one(key, shape[1:], dtype), keys)


class LiResNet(Baseline):
  """Residual convolutions, an orthogonal tail, GloRo's constant.

  The convolutions are not constrained. Training estimates the Lipschitz
  constant K = Π ‖W‖ of the backbone by power iteration, and the loss gets ε·K
  instead of ε. `certify.lipschitz_bound` proves a bound from the kernels
  afterwards. The tail is orthogonal by Cholesky's map.

  References: K. Hu, A. Zou, Z. Wang, K. Leino, M. Fredrikson, "Unlocking
  Deterministic Robustness Certification on ImageNet", NeurIPS 2023 (linear
  residuals, LLN head); K. Hu, K. Leino, Z. Wang, M. Fredrikson, "A Recipe for
  Improved Certifiable Robustness", ICLR 2024 (Cholesky, dense tail, EMMA).

  Parameters (conv_circular with circular padding):

      stem/conv_zero [s, s, patch²·channels, c], stem/pos [h, w, 1],
      stem/bias [c]
      blocks/conv_zero_raw [l, s, s, c, c], blocks/bias [l, c]
      neck/Q_raw [d, h·w·c], neck/bias; dense/Q_raw [m, d, d], dense/bias
      head/kernel, head/bias

  Explicit: blocks/conv_zero (with the identity in it), neck/Q, dense/Q.

  Attributes, besides those of `Baseline`:
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
    s, c, name = self.kernel_size, self.width, f'conv_{self.padding}'

    def convolve(x, kernel):
      kernel = kernel.astype(x.dtype)
      return convolutions.convolve(x, kernel, self.padding, self.precision)

    def add_convolution(x, kernel):
      y = convolve(x, kernel)
      # In the kernel, bfloat16 would round I + conv.
      return y if self.stored else x + y

    x = self.patches(images)
    # About an isometry on average: c outputs of variance 1/c each.
    init = nn.initializers.normal(stddev=(s * s * c) ** -0.5)
    x = self.apply_stem(x, (name, init, (s, s, x.shape[-1], c)), convolve)
    # ‖conv‖₂ starts at about 2/l, the residual stack within a factor of e².
    init = nn.initializers.normal(stddev=1 / (self.depth * s * c**0.5))
    leaf = (name + self.raw, init, (s, s, c, c))
    # Unrolled: XLA's CPU convolutions are 20 times slower inside a loop.
    x = self.apply_blocks(x, leaf, add_convolution, unroll=True)
    return self.classify(x.reshape(x.shape[0], -1), _orthogonal)

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

  def map_raw(
    self, _: str, name: str, raw: jax.Array, _params: Any
  ) -> jax.Array:
    """Computes I + conv as one kernel, or Q."""
    if name == 'Q':
      return parametrizations.cholesky(raw)
    return convolutions.with_identity(raw)


class BRONet(Baseline):
  """Orthogonal convolutions and dense layers by block reflectors.

      W = I − 2 V (VᴴV)⁻¹ Vᴴ     per frequency; V is the transformed kernel

  Every layer is orthogonal, or semi-orthogonal where outputs are cut off, so
  the backbone is 1-Lipschitz. Circular padding makes the convolutions exactly
  norm-preserving. The stem's patches are zero-padded to n = max(c, values)
  channels, of which c are kept; the paper's stem is not constrained.

  Reference: B.-H. Lai, P.-H. Huang, B.-H. Kung, S.-T. Chen, "Enhancing
  Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing
  Loss", ICML 2025.

  Parameters (r = ⌊ratio·c⌋):

      stem/spectrum_raw [s, s, n, r], stem/pos [h, w, 1], stem/bias [c]
      blocks/spectrum_raw [l, s, s, c, r], blocks/bias [l, c]
      neck/Q_raw [max(d, h·w·c), …], neck/bias
      dense/Q_raw [m, d, …], dense/bias
      head/kernel, head/bias

  Explicit: spectrum [(l,) h, w//2 + 1, 2, c, c], neck/Q [d, h·w·c], dense/Q.

  Attributes, besides those of `Baseline`:
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
    x = self.patches(images)
    s, c, (_, h, w, values) = self.kernel_size, self.width, x.shape
    n = max(c, values)

    def leaf(n):
      kernel = (s, s, n, self.rank(n))
      shape = (h, w // 2 + 1, 2, n, n) if self.stored else kernel
      return f'spectrum{self.raw}', _normal, shape

    def convolve(x, weights):
      # In float32 or wider: there is no complex bfloat16, and an FFT in it
      # would be no isometry.
      wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      if self.stored:
        return convolutions.apply_spectrum(wide, weights).astype(x.dtype)
      return convolutions.reflect(wide, weights).astype(x.dtype)

    def convolve_patches(x, weights):
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, n - values)))
      return convolve(x, weights)[..., :c]

    x = self.apply_stem(x, leaf(n), convolve_patches)
    x = self.apply_blocks(x, leaf(c), convolve)
    # A neck that widens starts from zero-padded features.
    x = x.reshape(x.shape[0], -1)
    x = jnp.pad(x, ((0, 0), (0, max(0, self.dense_width - x.shape[1]))))
    return self.classify(x, _normal)

  def raw_q(self, d: int, n: int) -> tuple[int, int]:
    """Returns the shape of V: its rank follows d, as n may be far larger."""
    return n, self.rank(d)

  def map_raw(
    self, _: str, name: str, raw: jax.Array, params: Any
  ) -> jax.Array:
    """Computes the reflectors of every frequency, or Q, the rows of one."""
    if name == 'Q':
      return parametrizations.block_reflector(raw, self.dense_width)
    grid = params['stem']['pos'].shape[:2]
    return convolutions.reflector_spectrum(raw, grid)
