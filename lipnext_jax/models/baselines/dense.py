"""Common parts of both baselines: sizes, parameters and the orthogonal tail.

neck    flatten → Q [d, h·w·c] → + bias → σ
dense   d → Q [d, d] → + bias → σ, several times
head    unit rows, as in LipNeXt
"""

from collections.abc import Callable
from typing import Self

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import head
from lipnext_jax.models import interface
from lipnext_jax.models import layers as layers_lib
from lipnext_jax.models import parametrizations

zeros = nn.initializers.zeros


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

  @nn.nowrap  # It has no parameters, and is called inside loops.
  def activate(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes σ(x + b) for x [..., c], b [c]."""
    x = x + layers_lib.per_channel(bias, x)
    return layers_lib.activate(x, self.activation, self.beta)

  @nn.nowrap
  def patches(self, images: jax.Array) -> jax.Array:
    """Cuts centred images [b, H, W, ch] into patches [b, h, w, values]."""
    x = layers_lib.patchify(layers_lib.centre(images), self.patch_size)
    return x.astype(self.dtype)

  @nn.nowrap
  def end_stem(
    self, x: jax.Array, pos: jax.Array, bias: jax.Array
  ) -> jax.Array:
    """Computes σ(x + p + b) for x [b, h, w, c], p [h, w, 1], b [c]."""
    if not self.position:  # p stays 0.
      pos = jax.lax.stop_gradient(pos)
    return self.activate(x + jnp.expand_dims(pos, 0).astype(x.dtype), bias)

  def raw_q(self, d: int, n: int) -> tuple[int, int]:
    """Returns the shape of the raw leaf of a tail's matrix [d, n]."""
    return d, n

  @nn.nowrap  # A part of the compact method that calls it.
  def classify(self, x: jax.Array, init: Callable[..., jax.Array]) -> jax.Array:
    """Applies neck, dense layers and head; raw matrices start at `init`."""
    groups: dict[str, tuple[int, ...]] = {'neck': ()}
    if self.dense_depth:
      groups['dense'] = (self.dense_depth,)
    for name, stack in groups.items():
      shape = (self.dense_width, x.shape[1])
      raw_shape = shape if self.stored else self.raw_q(*shape)
      leaves = (
        (f'Q{self.raw}', init, (*stack, *raw_shape)),
        ('bias', zeros, (*stack, self.dense_width)),
      )
      q, bias = Group(leaves, name=name)()
      q = q if self.stored else self.map_raw(name, 'Q', q, None)
      x = layers(x, q, bias, self.activate, self.precision)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return head.NormalizedHead(self.num_classes, name='head')(x)

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """Returns the model of `explicit_params`; see `models.interface`."""
    return self.clone(
      dtype=dtype, precision=jax.lax.Precision.HIGHEST, stored=True
    )


class Group(nn.Module):
  """Group of float32 parameters: a (name, initializer, shape) for each."""

  leaves: tuple[tuple[str, Callable[..., jax.Array], tuple[int, ...]], ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, ...]:
    """Returns the arrays in the order of the leaves."""
    return tuple(self.param(*leaf, jnp.float32) for leaf in self.leaves)


def layers(
  x: jax.Array,
  q: jax.Array,
  bias: jax.Array,
  activate: Callable[[jax.Array, jax.Array], jax.Array],
  precision: jax.lax.PrecisionLike,
) -> jax.Array:
  """Applies x ↦ σ(Q x + b) to rows, once for each matrix of a stack.

  Rows x are [b, n], Q [m, n] or a stack [l, n, n], biases [m] or [l, n].
  """

  def layer(x, weights):
    q, bias = weights
    y = jnp.einsum('bn,mn->bm', x, q.astype(x.dtype), precision=precision)
    return activate(y, bias), None

  if q.ndim == 2:
    return layer(x, (q, bias))[0]
  return jax.lax.scan(layer, x, (q, bias))[0]
