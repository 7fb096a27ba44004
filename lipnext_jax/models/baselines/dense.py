"""Common parts of both baselines: sizes, parameters and the orthogonal tail.

neck    flatten → Q [d, h·w·c] → + bias → σ
dense   d → Q [d, d] → + bias → σ, several times
head    unit rows, as in LipNeXt
"""

from collections.abc import Callable
from typing import Any
from typing import Self

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import head
from lipnext_jax.models import interface
from lipnext_jax.models import layers as layers_lib
from lipnext_jax.models import parametrizations

# Maps a raw leaf and m to an orthogonal matrix [m, n].
ToOrthogonal = Callable[[jax.Array, int], jax.Array]


class Baseline(interface.CertifiedModel):
  """Classifier of convolutions with an orthogonal dense tail.

  Attributes:
    num_classes: number of classes.
    depth: l, number of convolutions after the stem.
    width: c, channels.
    patch_size: side of the stem's patches, which is its stride.
    dense_depth: m, number of dense layers after the neck.
    dense_width: d, features of the neck and the dense layers.
    kernel_size: s, side of the kernels.
    activation: 'minmax' (as published) or 'beta_abs'.
    beta: β of 'beta_abs', the share of rectified channels.
    position: whether p is trained; it starts at 0.
    dtype: compute dtype; maps to orthogonal matrices stay in float32.
    precision: precision of all other products.
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

  @nn.nowrap  # It has no parameters, and is called inside loops.
  def activate(self, x: jax.Array) -> jax.Array:
    """Applies σ."""
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
    x = x + jnp.expand_dims(pos, 0).astype(x.dtype)
    return self.activate(x + layers_lib.per_channel(bias, x))

  @nn.nowrap  # A part of the compact method that calls it.
  def classify(self, x, init, raw_shape, to_orthogonal: ToOrthogonal):
    """Applies neck, dense layers and head to features [b, n].

    Raw leaves start at `init`, in the shape raw_shape(d, n) for Q [d, n].
    """
    d, m, raw = self.dense_width, self.dense_depth, parametrizations.RAW
    if self.stored:
      raw, raw_shape = '', lambda d, n: (d, n)
    shapes: dict[str, Any] = {'neck': (raw_shape(d, x.shape[1]), (d,))}
    if m:
      shapes['dense'] = ((m, *raw_shape(d, d)), (m, d))
    for name, (shape, bias_shape) in shapes.items():
      q, bias = Group(
        ((f'Q{raw}', init, shape), ('bias', nn.initializers.zeros, bias_shape)),
        name=name,
      )()
      q = q if self.stored else to_orthogonal(q, d)
      x = layers(x, q, bias, self.activate, self.precision)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return head.NormalizedHead(self.num_classes, name='head')(x)

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """Returns the model of `explicit_params`; see `models.interface`."""
    return self.clone(
      dtype=dtype, precision=jax.lax.Precision.HIGHEST, stored=True
    )


class Group(nn.Module):
  """Named group of float32 parameters.

  Attributes:
    leaves: a (name, initializer, shape) for each parameter.

  >>> group = Group((('bias', nn.initializers.zeros, (2,)),))
  >>> group.init(jax.random.key(0))['params']['bias'].tolist()
  [0.0, 0.0]
  """

  leaves: tuple[tuple[str, Callable[..., jax.Array], tuple[int, ...]], ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, ...]:
    """Returns the arrays in the order of the leaves."""
    return tuple(
      self.param(name, init, shape, jnp.float32)
      for name, init, shape in self.leaves
    )


def layers(
  x: jax.Array,
  q: jax.Array,
  bias: jax.Array,
  activate: Callable[[jax.Array], jax.Array],
  precision: jax.lax.PrecisionLike,
) -> jax.Array:
  """Applies x ↦ σ(Q x + b) to rows, once for each matrix of a stack.

  Rows x are [b, n], Q [m, n] or a stack [l, n, n], biases [m] or [l, n].
  """

  def layer(x, weights):
    q, bias = weights
    y = jnp.einsum('bn,mn->bm', x, q.astype(x.dtype), precision=precision)
    return activate(y + layers_lib.per_channel(bias, y)), None

  if q.ndim == 2:
    return layer(x, (q, bias))[0]
  return jax.lax.scan(layer, x, (q, bias))[0]


def explicit_tail(params: Any, to_orthogonal: ToOrthogonal) -> Any:
  """Returns the groups 'neck' and 'dense' of a tree with mapped matrices."""
  return {
    name: parametrizations.map_raw(
      group,
      {'Q': lambda raw, m=group['bias'].shape[-1]: to_orthogonal(raw, m)},
    )
    for name, group in params.items()
    if name in ('neck', 'dense')
  }
