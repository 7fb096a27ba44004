"""Checks of an optimizer's options, parameters and gradients.

Each function raises an error that says what to do. Options that are arrays are
not checked: optax may inject them as traced hyperparameters.
"""

from collections.abc import Collection
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import retraction

_MAX_CHANGE = 1e-3  # Largest ‖XᵀX − I‖₂ of a matrix changed between updates.
_CORNER = 64  # Number of rows and columns that a fingerprint reads.


def period(name: str, value: Any) -> None:
  """Raises ValueError for a number of steps below 1."""
  if isinstance(value, int) and value < 1:
    raise ValueError(f'{name}={value} must be at least 1, or None.')


def weight(name: str, value: Any) -> None:
  """Raises ValueError for a lookahead weight outside (0, 1]."""
  if isinstance(value, float | int) and not 0 < value <= 1:
    raise ValueError(f'{name}={value} must lie in (0, 1].')


def choice(name: str, value: str, choices: Collection[str]) -> None:
  """Raises ValueError for a name that is not among `choices`."""
  if value not in choices:
    raise ValueError(f'{name}={value!r} must be one of {sorted(choices)}.')


def rule(
  inner: Any, learning_rate: optax.ScalarOrSchedule | None
) -> optax.GradientTransformationExtraArgs:
  """Returns the rule of `orthogonal`'s first arguments, or raises TypeError."""
  built = isinstance(inner, optax.GradientTransformation)
  if not (built or callable(inner)) or built != (learning_rate is None):
    raise TypeError(
      f'orthogonal() got {inner!r} and {learning_rate=}: give the rate once, '
      'as in orthogonal(optax.adam, learning_rate=1e-3) or '
      'orthogonal(optax.adam(1e-3)).'
    )
  return optax.with_extra_args_support(inner if built else inner(learning_rate))


def gradients(grads: optax.Updates, params: optax.Params | None) -> None:
  """Raises ValueError for gradients that do not have the shapes of `params`."""
  if params is None:
    raise ValueError('update needs params: update(grads, state, params).')
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, x), g in zip(leaves, jax.tree.leaves(grads), strict=True):
    if jnp.shape(g) != jnp.shape(x):
      raise ValueError(
        f'the gradient of {_name(path)} has shape {jnp.shape(g)}; it needs '
        f'{jnp.shape(x)}.'
      )


def start(params: optax.Params, tolerance: Any) -> None:
  """Raises ValueError for leaves that are no real matrices on the manifold.

  Their ‖XᵀX − I‖₂ is compared with `tolerance`, unless that is None or their
  values are not known here.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if jnp.ndim(x) < 2:
      raise ValueError(
        f'orthogonal(): {_name(path)} has shape {jnp.shape(x)}, not '
        '[..., m, n]; send it to another transformation with optax.partition '
        '(see orthogonal_labels).'
      )
    if x.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(
        f'orthogonal(): {_name(path)} has dtype {x.dtype}; store it in float32 '
        'or float64, and cast it to compute (bfloat16 is 1e-2 off the '
        'manifold); store a unitary A + iB as the orthogonal [[A, -B], [B, A]].'
      )
    if tolerance is None or not _are_known(x, tolerance):
      continue
    errors = retraction.orthogonality_error(jnp.asarray(x), iterations=20)
    error = float(jnp.max(errors))
    if not error <= tolerance:  # Also where it is nan.
      raise ValueError(
        f'orthogonal(): {_name(path)} is {error:.1e} from orthonormal in '
        f'‖XᵀX − I‖₂ (start_tolerance={tolerance:g}); start from '
        'polar_retract(x).'
      )


def fingerprint(x: jax.Array) -> jax.Array:
  """Returns ⟨V, X⟩ for matrices X [..., m, n] and a fixed V, as [..., 1, 1].

  A scale or a shift of the whole matrix changes it. V is 0 outside a corner, so
  that it costs next to nothing.
  """

  def weights(size):  # Irregular numbers in [-½, ½).
    return jnp.arange(1, size + 1, dtype=x.dtype) * math.sqrt(1.25) % 1 - 0.5

  x = x[..., :_CORNER, :_CORNER]
  v = jnp.outer(*map(weights, x.shape[-2:]))
  return jnp.sum(x * jnp.broadcast_to(v, x.shape), (-2, -1), keepdims=True)


def is_spoilt(x: jax.Array, expected: jax.Array) -> jax.Array:
  """Returns whether x [m, n] was moved off the manifold since the last update.

  Its distance is estimated only where its fingerprint is not as `expected`.
  """
  m, n = (min(size, _CORNER) for size in x.shape)
  rounding = float(jnp.finfo(x.dtype).eps) * math.sqrt(m * n * (m + n))
  changed = jnp.abs(fingerprint(x) - expected) > rounding

  def is_off(x):
    return retraction.orthogonality_error(x, iterations=4) > _MAX_CHANGE

  return lax.cond(changed[0, 0], is_off, lambda _: jnp.zeros([], bool), x)


def unspoilt(params: optax.Params, expected: optax.Params) -> None:
  """Raises ValueError for a leaf that `is_spoilt`, unless it is traced."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  spoilt = jnp.vectorize(is_spoilt, signature='(m,n),(i,j)->()')
  for (path, x), e in zip(leaves, jax.tree.leaves(expected), strict=True):
    if _are_known(x, e) and jnp.any(spoilt(x, e)):
      raise ValueError(
        f'orthogonal(): {_name(path)} is not what the last update left, and is '
        'off the manifold; do not scale or shift updates after orthogonal(), '
        'whose learning rate goes inside: orthogonal(optax.adam, 1e-3).'
      )


def _name(path: tuple[Any, ...]) -> str:
  """Names a leaf in an error message."""
  return f'leaf {jax.tree_util.keystr(path)}' if path else 'the only leaf'


def _are_known(*values: Any) -> bool:
  """Returns whether this host can read all of the values."""
  return all(
    not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
    for x in values
    if isinstance(x, jax.Array)
  )
