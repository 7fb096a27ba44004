"""Checks of what optimizers are given, with messages that name the remedy.

Options that are arrays pass: optax injects hyperparameters, and may trace them.
"""

from collections.abc import Collection
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import retraction

# ‖XᵀX − I‖₂ from which a matrix that was changed between updates is refused.
MAX_CHANGE = 1e-3
_CORNER = 64  # Rows and columns that a fingerprint reads.


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


def rule(
  inner: Any, learning_rate: optax.ScalarOrSchedule | None
) -> optax.GradientTransformationExtraArgs:
  """Returns `inner` with its learning rate, or refuses what is no such rule."""
  if isinstance(inner, optax.GradientTransformation):
    if learning_rate is not None:
      raise TypeError(
        'orthogonal() got a rule that is built already, and a learning_rate: '
        'give orthogonal(optax.adam, learning_rate) or '
        'orthogonal(optax.adam(learning_rate)).'
      )
    return optax.with_extra_args_support(inner)
  if not callable(inner) or learning_rate is None:
    raise TypeError(
      'orthogonal() lifts an optax rule, as in orthogonal(optax.adam, '
      f'learning_rate=1e-3); got {inner!r} and {learning_rate=}.'
    )
  return optax.with_extra_args_support(inner(learning_rate))


def matrices(params: optax.Params) -> None:
  """Refuses leaves other than float32 or float64 matrices [..., m, n]."""
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = _name(path)
    if jnp.ndim(x) < 2:
      raise ValueError(
        f'orthogonal(): {name} has shape {jnp.shape(x)}; it needs '
        'matrices [..., m, n]. Send other leaves to another transformation '
        'with optax.partition (see orthogonal_labels).'
      )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
      raise ValueError(
        f'orthogonal(): {name} is {x.dtype}; it moves real matrices only. '
        'Represent a unitary A + iB as the orthogonal [[A, -B], [B, A]].'
      )
    if x.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(
        f'orthogonal(): {name} has dtype {x.dtype}; keep orthogonal '
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
      name = _name(path)
      raise ValueError(
        f'The gradient of {name} has shape {given}; it needs {needed}.'
      )

  jax.tree_util.tree_map_with_path(check, params, grads)


def on_manifold(params: optax.Params, tolerance: Any) -> None:
  """Refuses matrices whose ‖XᵀX − I‖₂ exceeds `tolerance`; None: no check.

  Values that are traced, or partly on other hosts, are not looked at.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    x = jnp.asarray(x)
    if tolerance is None or not (_is_known(x) and _is_known(tolerance)):
      continue
    errors = retraction.orthogonality_error(x, iterations=20)
    error = float(jnp.max(errors, initial=0))
    if not error <= tolerance:  # Also where it is nan.
      raise ValueError(
        f'orthogonal(): {_name(path)} is {error:.1e} from '
        f'orthonormal (‖XᵀX − I‖₂; start_tolerance={tolerance:g}). Start from '
        'polar_retract(x).'
      )


def fingerprint(x: jax.Array) -> jax.Array:
  """Returns ⟨V, X⟩ of matrices x [..., m, n] with a fixed V, as [..., 1, 1].

  V is 0 outside a corner, so that the cost does not count; what scales or
  shifts updates shows there as anywhere.

  >>> x = jnp.eye(3)
  >>> bool(jnp.all(fingerprint(x + x) == fingerprint(x) + fingerprint(x)))
  True
  """

  def weights(size):  # In [-½, ½), without a pattern.
    turns = jnp.arange(1, size + 1, dtype=x.dtype) * ((math.sqrt(5) - 1) / 2)
    return turns - jnp.floor(turns) - 0.5

  x = x[..., :_CORNER, :_CORNER]
  m, n = x.shape[-2:]
  v = jnp.broadcast_to(weights(m)[:, None] * weights(n)[None], x.shape)
  return jnp.sum(x * v, axis=(-2, -1), keepdims=True)


def is_spoilt(x: jax.Array, expected: jax.Array) -> jax.Array:
  """Returns whether something took x [m, n] off the manifold since an update.

  It is then not what that update left, by its fingerprint and to rounding, and
  more than 1e-3 from orthonormal, which costs nothing to find otherwise.
  """
  m, n = (min(size, _CORNER) for size in x.shape)
  rounding = float(jnp.finfo(x.dtype).eps) * math.sqrt(m * n * (m + n))
  changed = jnp.abs(fingerprint(x) - expected) > rounding

  def is_off(x):
    return retraction.orthogonality_error(x, iterations=4) > MAX_CHANGE

  return lax.cond(changed[0, 0], is_off, lambda _: jnp.zeros([], bool), x)


def left_alone(params: optax.Params, expected: optax.Params) -> None:
  """Refuses what `is_spoilt`, where its values are known."""

  def check(path, x, expected):
    x = jnp.asarray(x)
    if not (x.size and _is_known(x) and _is_known(expected)):
      return
    if jnp.any(
      jnp.vectorize(is_spoilt, signature='(m,n),(i,j)->()')(x, expected)
    ):
      raise ValueError(
        f'orthogonal(): {_name(path)} is not what the last update left, and is '
        'off the manifold. Let nothing scale or shift the updates after '
        'orthogonal(): its learning rate goes inside, as in '
        'orthogonal(optax.adam, 1e-3).'
      )

  jax.tree_util.tree_map_with_path(check, params, expected)


def _name(path: tuple[Any, ...]) -> str:
  """Returns what messages call the leaf at `path`."""
  return f'leaf {jax.tree_util.keystr(path)}' if path else 'the only leaf'


def _is_known(x: Any) -> bool:
  """Returns whether the values of `x` can be looked at here and now."""
  if isinstance(x, jax.Array):
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
  return True
