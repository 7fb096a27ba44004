"""The last-layer-normalised head, shared by every certified model.

    f_j(z) = w_j·z / ‖w_j‖ + b_j

The map z ↦ f is not 1-Lipschitz: its norm can reach √k. Certificates use that
f_i − f_j has the Lipschitz constant ‖w_i − w_j‖ <= 2, for unit rows w.
"""

import flax.linen as nn
from flax.typing import VariableDict
import jax
import jax.numpy as jnp


class NormalizedHead(nn.Module):
  """Linear layer with unit-norm rows and a bias."""

  num_classes: int

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps features [b, c] to logits [b, k], float32 or wider."""
    shape = (self.num_classes, z.shape[-1])
    init = nn.initializers.normal(stddev=1.0)  # Rows are normalised: no scale.
    kernel = self.param('kernel', init, shape, jnp.float32)
    bias = self.param(
      'bias', nn.initializers.zeros, (self.num_classes,), jnp.float32
    )
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

  Raises:
    ValueError: the variables hold no `head/kernel`.

  >>> kernel = jnp.array([[3.0, 4.0], [0.0, 2.0]])
  >>> rows = head_kernel({'params': {'head': {'kernel': kernel}}})
  >>> jnp.linalg.norm(rows, axis=-1).tolist()
  [1.0, 1.0]
  """
  try:
    return unit_rows(variables['params']['head']['kernel'])
  except (KeyError, TypeError) as error:
    raise ValueError(
      "head_kernel needs variables = {'params': {'head': {'kernel': …}, …}}, "
      f'got a tree with the keys {list(variables)}.'
    ) from error
