"""What both rivals share: groups of parameters, and the orthogonal tail.

neck    flatten → Q [d, h·w·c] → + bias → σ
dense   d → Q [d, d] → + bias → σ, several times
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax.models import layers as layers_lib
from lipnext_jax.models import parametrizations

# (raw leaf, m) → its orthogonal [m, n].
ToOrthogonal = Callable[[jax.Array, int], jax.Array]


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
    y = layers_lib.token_product(x, q.astype(x.dtype), precision)
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
