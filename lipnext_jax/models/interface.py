"""The methods that every certified model offers.

Certificates are about *explicit* parameters: the matrices and kernels that are
applied, not what they are computed from, so that no map has to be trusted.
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
    """Returns the backbone's constant as training takes it; no proof.

    Differentiable in the parameters. 1 for a backbone of orthogonal layers.
    """
    del params  # Orthogonal by construction; `certify` bounds what is stored.
    return 1.0

  def explicit_params(self, params: Any) -> Any:
    """Returns the parameters of `explicit`: pure JAX, idempotent there."""
    raise NotImplementedError

  def explicit(self, dtype: Dtype = jnp.float32) -> Self:
    """Returns the same function of `explicit_params`, for evaluation.

    In `dtype`, with products at the highest precision; idempotent.
    """
    raise NotImplementedError


def certified_params(
  model: CertifiedModel,
  params: Any,
  stack_sharding: jax.sharding.NamedSharding | None = None,
) -> Any:
  """Makes the certified weights: explicit ones, their matrices retracted.

  Λ would otherwise pay for what training drifted off the manifold.

  Args:
    model: in any form.
    params: weights of that form, usually the slow ones (`optim.slow_params`).
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
