"""Checks of what optimizers are given, with messages that name the remedy.

Options that are arrays pass: optax injects hyperparameters, and may trace them.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import retraction


def period(name: str, value: Any) -> None:
  """Refuses a number of steps below 1; None and arrays pass."""
  if isinstance(value, int) and value < 1:
    raise ValueError(f'{name}={value} must be at least 1, or None.')


def weight(name: str, value: Any) -> None:
  """Refuses a lookahead weight outside (0, 1]; arrays pass."""
  if isinstance(value, float | int) and not 0 < value <= 1:
    raise ValueError(f'{name}={value} must lie in (0, 1].')


def choice(name: str, value: str, choices: Collection[str]) -> None:
  """Refuses a name that is not among `choices`."""
  if value not in choices:
    raise ValueError(f'{name}={value!r} must be one of {sorted(choices)}.')


def matrices(params: optax.Params) -> None:
  """Refuses leaves other than float32 or float64 matrices [..., m, n]."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    if jnp.ndim(x) < 2:
      raise ValueError(
        f'orthogonal(): leaf {name} has shape {jnp.shape(x)}; it needs '
        'matrices [..., m, n]. Send other leaves to another transformation '
        'with optax.partition (see orthogonal_labels).'
      )
    if x.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(
        f'orthogonal(): leaf {name} has dtype {x.dtype}; keep orthogonal '
        'parameters in float32 (or float64) and cast them for compute: a '
        'bfloat16 master copy is 1e-2 off the manifold.'
      )


def gradients(grads: optax.Updates, params: optax.Params | None) -> None:
  """Refuses gradients without parameters, or of other shapes than theirs."""
  if params is None:
    raise ValueError('This needs the parameters: update(grads, state, params).')

  def check(path, x, g):
    given, needed = jnp.shape(g), jnp.shape(x)
    if given != needed:
      name = jax.tree_util.keystr(path)
      raise ValueError(
        f'The gradient of leaf {name} has shape {given}; it needs {needed}.'
      )

  jax.tree_util.tree_map_with_path(check, params, grads)


def on_manifold(params: optax.Params, tolerance: float | None) -> None:
  """Refuses matrices whose ‖XᵀX − I‖₂ exceeds `tolerance`; None: no check."""
  if tolerance is None:
    return
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
        f'orthogonal(): leaf {name} is {error:.1e} from orthonormal '
        f'(‖XᵀX − I‖₂; {tolerance=}). Start from polar_retract(x).'
      )
