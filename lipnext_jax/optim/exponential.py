"""FastExp (paper §3.2): the exponential of small skew steps, in products.

FastExp(A) = I + A + A²/2                     ‖A‖_F < 0.05    1 product
           = … + A³/6                         ‖A‖_F < 0.25    2 products
           = … + A⁴/24                        ‖A‖_F < 1       2 products
           = exp(A)                           from 1 on       3 + squarings
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import checks
from lipnext_jax.optim import products
from lipnext_jax.optim import retraction
from lipnext_jax.optim import stack

# The paper's thresholds on ‖A‖_F for the orders 2, 3, 4 (eq. of FastExp).
THRESHOLDS = (0.05, 0.25, 1.0)

# Degree-8 Taylor polynomial in 3 products: P. Bader, S. Blanes, F. Casas,
# "Computing the Matrix Exponential with an Optimized Taylor Polynomial
# Approximation", Mathematics 7(12), 2019, §3 (m = 8).
_S = math.sqrt(177)
_X3 = 2 / 3
_X1 = _X3 * (1 + _S) / 88
_X2 = _X3 * (1 + _S) / 352
_X4 = (-271 + 29 * _S) / (315 * _X3)
_X5 = 11 * (-1 + _S) / (1260 * _X3)
_X6 = 11 * (-9 + _S) / (5040 * _X3)
_X7 = (89 - _S) / (5040 * _X3**2)
_Y2 = (857 - 58 * _S) / 630

# Rounding in A alone moves exp(A) by eps·‖A‖₂. Above this bound nothing of the
# result could be trusted, not even its orthogonality, and nan is returned.
MAX_ROUNDING = 2.0**-7


def fast_expm1(
  a: jax.Array,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  large_steps: str = 'exponential',
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
  """Returns FastExp(a) − I for skew-symmetric `a` (paper §3.2), batched.

  It is formed directly, never by subtracting I: the rounding error is relative
  to the small step. Each matrix takes the branch of its own norm. The exact
  branch is right to rounding, eps·‖a‖₂, for any norm. Where that leaves no
  accuracy at all (‖a‖₂ > 6e4 in float32), and for non-finite input, the result
  is nan, so that `optax.apply_if_finite` and the like see it.

  The plane of eigenvalues ±it turns by t. With `large_steps='projection'` the
  last branch turns it by atan(t) instead, less than a quarter turn however
  large the step: it is the nearest orthogonal matrix to I + a (the projective
  retraction of P.-A. Absil, J. Malick, "Projection-like Retractions on Matrix
  Manifolds", SIAM J. Optim. 22(1), 2012, §3).

  Args:
    a: [..., n, n] float32 (or wider), skew-symmetric.
    thresholds: ascending bounds on ‖a‖_F below which the orders 2, 3 and 4
      are used; with (0, 0, 0) the last branch always is.
    large_steps: last branch, 'exponential' (the paper's) or 'projection'.
    precision: precision of every product; the default is full float32.

  Returns:
    [..., n, n], the dtype of `a`.

  Raises:
    ValueError: `a` is not square, the thresholds are not three ascending
      numbers, or `large_steps` is unknown.

  >>> a = jnp.array([[0.0, -0.01], [0.01, 0.0]])
  >>> round(fast_expm1(a)[1, 0].item(), 6)  # sin(0.01)
  0.01
  >>> turned = fast_expm1(1e3 * a, large_steps='projection')
  >>> round(turned[1, 0].item(), 4)  # sin(atan(10))
  0.995
  """
  if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
    raise ValueError(f'fast_exp needs square matrices, got {a.shape=}.')
  if len(thresholds) != 3 or list(thresholds) != sorted(thresholds):
    raise ValueError(f'{thresholds=} must be three ascending numbers.')
  checks.choice('large_steps', large_steps, LARGE_STEPS)
  one = functools.partial(
    _expm1_one, tuple(thresholds), LARGE_STEPS[large_steps], precision
  )
  return stack.map_stacks(one, a)


def fast_exp(a: jax.Array, **options: Any) -> jax.Array:
  """Returns FastExp(a) for skew-symmetric `a` (paper §3.2), batched.

  Updates should use `fast_expm1`, which keeps the digits of a small step.

  Args:
    a: [..., n, n] float32 (or wider), skew-symmetric.
    **options: options of `fast_expm1`.

  Returns:
    [..., n, n], the dtype of `a`.

  >>> fast_exp(jnp.zeros((3, 2, 2))).shape
  (3, 2, 2)
  """
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  return fast_expm1(a, **options) + jnp.broadcast_to(eye, a.shape)


def _expm1_one(thresholds, large, precision, a: jax.Array) -> jax.Array:
  """Returns `fast_expm1` of one matrix [n, n]; A² is shared between terms."""
  mm = functools.partial(products.product, precision=precision)

  def order2(a):
    return a + mm(a, a) / 2

  def order3(a):
    a2 = mm(a, a)
    return a + a2 / 2 + mm(a2, a) / 6

  def order4(a):
    a2 = mm(a, a)
    return a + a2 / 2 + mm(a2, a / 6 + a2 / 24)

  norm = jnp.linalg.norm(a)
  # Counting passed thresholds sends nan to order 2 (and nan out of it).
  branch = sum((norm >= t).astype(jnp.int32) for t in thresholds)
  last = functools.partial(large, precision)
  return lax.switch(branch, [order2, order3, order4, last], a)


def _exact_expm1(precision: lax.PrecisionLike, a: jax.Array) -> jax.Array:
  """Returns exp(a) − I by scaling and squaring: E ← 2E + E², s times."""
  mm = functools.partial(products.product, precision=precision)
  a2 = mm(a, a)
  # Skew-symmetric: ‖A‖₂⁴ = ‖A²‖₂² and its eigenvalues come in pairs, so
  # 2‖A²‖₂² <= ‖A²‖_F². Far sharper than ‖A‖_F for a step whose energy is
  # spread over many directions, as elementwise optimizers make them.
  spectral = jnp.minimum(
    jnp.linalg.norm(a) / math.sqrt(2),
    jnp.sqrt(jnp.linalg.norm(a2) / math.sqrt(2)),
  )
  # Truncation error θ⁹/9! relative to θ, held below half an ulp.
  eps = float(jnp.finfo(a.dtype).eps)
  theta = (math.factorial(9) * eps / 2) ** (1 / 8)
  lost = ~(spectral * eps < MAX_ROUNDING)  # Also where it is nan.
  squarings = jnp.ceil(jnp.log2(jnp.maximum(spectral / theta, 1)))
  squarings = jnp.where(lost, 0, squarings)
  scale = jnp.where(lost, jnp.nan, jnp.exp2(-squarings))

  a, a2 = a * scale, a2 * jnp.square(scale)
  a4 = mm(a2, _X1 * a + _X2 * a2)
  right = _X5 * a + _X6 * a2 + _X7 * a4
  left = _X3 * a2 + a4
  a8 = mm(left, right) + _X4 * left
  e = a + _Y2 * a2 + a8
  times = squarings.astype(jnp.int32)
  return lax.fori_loop(0, times, lambda _, e: 2 * e + mm(e, e), e)


def _projected_expm1(precision: lax.PrecisionLike, a: jax.Array) -> jax.Array:
  """Returns polar(I + a) − I; for steps this large a subtraction will do."""
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  # The condition of I + a, ‖I + a‖₂, must leave some digits here, too.
  spectral = jnp.linalg.norm(a) / math.sqrt(2)
  kept = spectral * float(jnp.finfo(a.dtype).eps) < MAX_ROUNDING
  start = jnp.where(kept, eye + a, eye)
  q = retraction.polar_retract(start, precision=precision)
  return jnp.where(kept, q - eye, jnp.nan)


LARGE_STEPS = {'exponential': _exact_expm1, 'projection': _projected_expm1}
