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

from lipnext_jax.optim import recipe
from lipnext_jax.optim import retraction
from lipnext_jax.optim import stack


class CertifiedModel(nn.Module):
  """Images [b, H, W, ch] in [0, 1] → logits [b, k], float32 or wider.

  Subclasses have a field `num_classes` (k) and a `models.head.NormalizedHead`
  named 'head'; their parameters are float32.
  """

  def lipschitz(self, params: Any) -> jax.typing.ArrayLike:
    """Returns the Lipschitz constant K of the backbone that training assumes.

    It is no proof. Differentiable in the parameters; 1 for orthogonal layers.
    """
    del params  # Orthogonal by construction; `certify` bounds what is stored.
    return 1.0

  def explicit_params(self, params: Any) -> Any:
    """Computes the parameters of `explicit`; returns those unchanged."""
    raise NotImplementedError

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """Returns the same function of `explicit_params`, for evaluation.

    It computes in `dtype`, with products at the highest precision.
    """
    raise NotImplementedError


def certified_params(
  model: CertifiedModel,
  params: Any,
  stack_sharding: jax.sharding.NamedSharding | None = None,
) -> Any:
  """Makes the certified weights: explicit ones with retracted matrices.

  Retraction removes the drift off the manifold, which would increase Λ.

  Args:
    model: a model, in training form or explicit.
    params: its weights, usually the slow ones (`optim.slow_params`).
    stack_sharding: layout of stacks of matrices; each device retracts its own.
  """

  def retract(x):
    return stack.map_stacks(
      retraction.polar_retract, x, sharding=stack_sharding
    )

  params = model.explicit_params(params)
  labels = recipe.orthogonal_labels(params)
  return jax.tree.map(
    lambda p, label: retract(p) if label == 'orthogonal' else p,
    params,
    labels,
  )


def parameter_count(params: Any) -> int:
  """Counts the numbers in a tree of parameters, or of their shapes.

  >>> parameter_count({'bias': jnp.zeros(3), 'M': jnp.eye(2)})
  7
  """
  return sum(leaf.size for leaf in jax.tree.leaves(params))
