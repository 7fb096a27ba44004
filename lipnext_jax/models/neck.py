"""Position-aware end of a network: a neck, then dense layers.

    neck     z = σ(Q x + b)    x [h·w·c]: all tokens of an image; Q [d, h·w·c]
    dense    z ← σ(Q z + b)    Q [d, d], several times

L2 pooling gives the head one energy per channel and drops signs and places. A
neck gives it signed features of the whole image. Every Q has orthonormal rows,
so the layers are 1-Lipschitz. The neck has d·h·w·c numbers: it suits small
grids of tokens; pooling suits large ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models import products


class DenseLayer(nn.Module):
  """σ(Q x + b) of rows, as a scan body: (x, None) → (z, None)."""

  features: int
  activation: str
  beta: float
  q_init: str
  parametrization: str
  numerics: products.Numerics

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """Maps features [b, n] to [b, d]."""
    q = parametrizations.orthogonal_param(
      self,
      'Q',
      (self.features, x.shape[-1]),
      self.q_init,
      self.parametrization,
    )
    zeros = nn.initializers.zeros
    bias = self.param('bias', zeros, (self.features,), jnp.float32)
    y = products.product(self.numerics, x, q)
    y += layers.per_channel(bias, y)
    return layers.activate(y, self.activation, self.beta), None


def neck_parametrization(parametrization: str) -> str:
  """Returns the parametrization of the neck, given that of other matrices.

  Only Cholesky's map takes wide matrices as they are; the others would need a
  raw matrix of side h·w·c.

  >>> neck_parametrization('cayley'), neck_parametrization('none')
  ('cholesky', 'none')
  """
  return 'none' if parametrization == 'none' else 'cholesky'
