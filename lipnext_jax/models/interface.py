"""The interface of every certified model, and its normalised head.

Certificates are about *explicit* parameters: the matrices and kernels that are
applied. A map that computes them from raw ones need not be trusted.
"""

from typing import Any
from typing import ClassVar
from typing import Self

import flax.linen as nn
from flax.typing import Dtype
from flax.typing import VariableDict
import jax
import jax.numpy as jnp

from lipnext_jax.models import parametrizations


class CertifiedModel(nn.Module):
  """Images [b, H, W, ch] in [0, 1] → logits [b, k], float32 or wider.

  Subclasses have the fields `num_classes` (k), `dtype` and `precision`, set
  `EXPLICIT`, and have a `NormalizedHead` named 'head'. Their parameters,
  {group: {leaf: array}}, are float32.
  """

  # Fields, and their values in the model of explicit parameters.
  EXPLICIT: ClassVar[dict[str, Any]]

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
    highest = jax.lax.Precision.HIGHEST
    return self.clone(dtype=dtype, precision=highest, **self.EXPLICIT)


class NormalizedHead(nn.Module):
  """The last-layer-normalised head: f_j(z) = w_j·z / ‖w_j‖ + b_j.

  The map z ↦ f is not 1-Lipschitz: its norm can reach √k. Certificates use that
  f_i − f_j has the Lipschitz constant ‖w_i − w_j‖ <= 2, for unit rows w.
  """

  num_classes: int

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps features [b, c] to logits [b, k], float32 or wider."""
    shape = (self.num_classes, z.shape[-1])
    init = nn.initializers.normal(stddev=1.0)  # Rows are normalised: no scale.
    kernel = self.param('kernel', init, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape[:1], jnp.float32)
    # Only k·c products an image: full precision costs nothing.
    logits = jnp.einsum(
      'bc,kc->bk', z, unit_rows(kernel), precision=jax.lax.Precision.HIGHEST
    )
    return logits + jnp.expand_dims(bias, 0)


def unit_rows(kernel: jax.Array) -> jax.Array:
  """Scales every row of [k, c] to unit ℓ2 norm.

  >>> unit_rows(jnp.array([[3.0, 4.0], [0.0, 2.0]])).round(6).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
  """
  return kernel / jnp.linalg.norm(kernel, axis=-1, keepdims=True)


def head_kernel(variables: VariableDict) -> jax.Array:
  """Returns the unit-norm head rows [k, c] that losses and certificates use.

  Args:
    variables: `{'params': …}` as returned by `model.init`.

  >>> kernel = jnp.array([[3.0, 4.0], [0.0, 2.0]])
  >>> rows = head_kernel({'params': {'head': {'kernel': kernel}}})
  >>> jnp.linalg.norm(rows, axis=-1).tolist()
  [1.0, 1.0]
  """
  return unit_rows(variables['params']['head']['kernel'])


def parameter_count(params: Any) -> int:
  """Counts the numbers in a tree of parameters, or of their shapes.

  >>> parameter_count({'bias': jnp.zeros(3), 'M': jnp.eye(2)})
  7
  """
  return sum(leaf.size for leaf in jax.tree.leaves(params))
