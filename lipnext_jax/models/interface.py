"""The methods that every certified model offers.

Certificates are about *explicit* parameters: the matrices and kernels that are
applied. A map that computes them from raw ones need not be trusted.
"""

from typing import Any
from typing import Self

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import parametrizations


class CertifiedModel(nn.Module):
  """Images [b, H, W, ch] in [0, 1] → logits [b, k], float32 or wider.

  Subclasses have a field `num_classes` (k) and a `models.head.NormalizedHead`
  named 'head'; their parameters, {group: {leaf: array}}, are float32.
  """

  def lipschitz(self, params: Any) -> jax.typing.ArrayLike:
    """Returns the Lipschitz constant K of the backbone that training assumes.

    It is no proof. Differentiable in the parameters; 1 for orthogonal layers.
    """
    del params  # Orthogonal by construction; `certify` bounds what is stored.
    return 1.0

  def map_raw(self, group: str, name: str, raw: jax.Array, params: Any) -> Any:
    """Computes the array `name` of a group from its leaf `name` + '_raw'."""
    raise NotImplementedError

  def explicit_params(self, params: Any) -> Any:
    """Computes the parameters of `explicit`; returns those unchanged."""

    def explicit(group, leaf, x):
      name = leaf.removesuffix(parametrizations.RAW)
      return name, x if name == leaf else self.map_raw(group, name, x, params)

    return {
      group: dict(explicit(group, *leaf) for leaf in leaves.items())
      for group, leaves in params.items()
    }

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """Returns the same function of `explicit_params`, for evaluation.

    It computes in `dtype`, with products at the highest precision.
    """
    raise NotImplementedError


def parameter_count(params: Any) -> int:
  """Counts the numbers in a tree of parameters, or of their shapes.

  >>> parameter_count({'bias': jnp.zeros(3), 'M': jnp.eye(2)})
  7
  """
  return sum(leaf.size for leaf in jax.tree.leaves(params))
