"""What `orthogonal` refuses, in words."""

import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import retraction


def matrices(params: optax.Params, where: str) -> None:
  """Refuses leaves that cannot be orthogonal matrices."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    if jnp.ndim(x) < 2:
      raise ValueError(
        f'orthogonal().{where}: leaf {name} has shape {jnp.shape(x)}; it needs '
        'matrices [..., m, n]. Send other leaves to another transformation '
        'with optax.partition (see orthogonal_labels).'
      )
    if x.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(
        f'orthogonal().{where}: leaf {name} has dtype {x.dtype}; keep '
        'orthogonal parameters in float32 (or float64) and cast them for '
        'compute: a bfloat16 master copy is 1e-2 off the manifold.'
      )


def gradients(updates: optax.Updates, params: optax.Params) -> None:
  """Refuses gradients of other shapes than a matrix or its first rows have."""

  def check(path, x, g):
    *lead, rows, columns = x.shape
    whole = g.shape == x.shape
    some = g.ndim == x.ndim and g.shape[-2] <= rows <= columns
    if not whole and not (some and g.shape == (*lead, g.shape[-2], columns)):
      name = jax.tree_util.keystr(path)
      raise ValueError(
        f'orthogonal().update: the gradient of leaf {name} has shape '
        f'{g.shape}; it needs {x.shape}, or the first rows of that if m <= n.'
      )

  jax.tree_util.tree_map_with_path(check, params, updates)


def on_manifold(params: optax.Params, tolerance: float) -> None:
  """Refuses a start point that is not on the manifold."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    errors = retraction.orthogonality_error(x, iterations=20)
    try:
      error = float(jnp.max(errors))
    except jax.errors.ConcretizationTypeError as e:
      raise ValueError(
        'orthogonal(start_tolerance=…) looks at the values of the parameters: '
        'call init outside jit and eval_shape, or leave the check out.'
      ) from e
    if not error <= tolerance:  # Also where it is nan.
      raise ValueError(
        f'orthogonal().init: leaf {name} is {error:.1e} from orthonormal '
        f'(‖XᵀX − I‖₂; {tolerance=}). Start from polar_retract(x).'
      )
