"""What both rivals share: sizes, groups of parameters, and the orthogonal tail.

neck    flatten → Q [d, h·w·c] → + bias → σ
dense   d → Q [d, d] → + bias → σ, several times
"""

from collections.abc import Callable
from typing import Any
from typing import Self

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import interface
from lipnext_jax.models import layers as layers_lib
from lipnext_jax.models import parametrizations

# (raw leaf, m) → its orthogonal [m, n].
ToOrthogonal = Callable[[jax.Array, int], jax.Array]


class Rival(interface.CertifiedModel):
  """Convolutions, then an orthogonal dense tail: what both are told.

  Attributes:
    num_classes: k.
    depth: l, convolutions after the stem.
    width: C, channels.
    patch_size: side of the stem's patches, its stride.
    dense_depth: m, dense layers after the neck.
    dense_width: d, features of neck and dense layers.
    kernel_size: K, side of the kernels.
    activation: 'minmax' (as published) or 'beta_abs'.
    beta: of 'beta_abs'.
    position: False: p is never trained away from zero.
    dtype: compute dtype; what makes matrices orthogonal stays in float32.
    precision: of the products that do not.
    stored: the parameters are those of `explicit_params`.
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

  @nn.nowrap  # It has no parameters, and is called inside of loops.
  def activate(self, x: jax.Array) -> jax.Array:
    """σ."""
    return layers_lib.activate(x, self.activation, self.beta)

  @nn.nowrap
  def end_stem(
    self, x: jax.Array, pos: jax.Array, bias: jax.Array
  ) -> jax.Array:
    """σ(x + p + b) for x [b, h, w, c], p [h, w, 1], b [c]."""
    if not self.position:  # Stays at its start, zero.
      pos = jax.lax.stop_gradient(pos)
    x = x + jnp.expand_dims(pos, 0).astype(x.dtype)
    return self.activate(x + layers_lib.per_channel(bias, x))

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """See `models.interface`."""
    return self.clone(
      dtype=dtype, precision=jax.lax.Precision.HIGHEST, stored=True
    )


class Group(nn.Module):
  """A named group of float32 parameters, and nothing else.

  Attributes:
    leaves: (name, initializer, shape) each.

  >>> group = Group((('bias', nn.initializers.zeros, (2,)),))
  >>> group.init(jax.random.key(0))['params']['bias'].tolist()
  [0.0, 0.0]
  """

  leaves: tuple[tuple[str, Callable[..., jax.Array], tuple[int, ...]], ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, ...]:
    """The arrays, in the order of the leaves."""
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
  """x ↦ σ(Q x + b) on rows, once for each matrix of a stack.

  Args:
    x: [b, n].
    q: [m, n], or a stack [l, n, n]; cast to the dtype of x.
    bias: [m], or [l, n].
    activate: σ.
    precision: of the products.

  >>> x = jnp.array([[1.0, 2.0]])
  >>> layers(x, 2 * jnp.eye(2), jnp.ones(2), jnp.negative, None).tolist()
  [[-3.0, -5.0]]
  """

  def layer(x, weights):
    q, bias = weights
    y = jnp.einsum('bn,mn->bm', x, q.astype(x.dtype), precision=precision)
    return activate(y + layers_lib.per_channel(bias, y)), None

  if q.ndim == 2:
    return layer(x, (q, bias))[0]
  return jax.lax.scan(layer, x, (q, bias))[0]


def explicit_tail(params: Any, to_orthogonal: ToOrthogonal) -> Any:
  """The groups 'neck' and 'dense' of a tree, with their matrices mapped.

  >>> raw = {'neck': {'Q_raw': 2 * jnp.eye(2, 3), 'bias': jnp.zeros(2)}}
  >>> tail = explicit_tail(raw, lambda v, m: v / m)
  >>> tail['neck']['Q'].tolist()
  [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
  """
  return {
    name: parametrizations.map_raw(
      group,
      {'Q': lambda raw, m=group['bias'].shape[-1]: to_orthogonal(raw, m)},
    )
    for name, group in params.items()
    if name in ('neck', 'dense')
  }
