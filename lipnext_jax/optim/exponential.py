"""FastExp (paper §3.2): exponentials of skew-symmetric matrices in products.

FastExp(A) = I + A + A²/2                     ‖A‖_F < 0.05    1 product
           = … + A³/6                         ‖A‖_F < 0.25    2 products
           = … + A⁴/24                        ‖A‖_F < 1       2 products
           = exp(A)                           otherwise       3 + squarings
"""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import checks
from lipnext_jax.optim import retraction
from lipnext_jax.optim import stack

# The paper's thresholds on ‖A‖_F for the orders 2, 3, 4 (eq. of FastExp).
THRESHOLDS = (0.05, 0.25, 1.0)

# Degree-8 Taylor polynomial in 3 products: P. Bader, S. Blanes, F. Casas,
# "Computing the Matrix Exponential with an Optimized Taylor Polynomial
# Approximation", Mathematics 7(12), 2019, §3 (m = 8).
_ROOT = math.sqrt(177)
_X3 = 2 / 3
_X1 = _X3 * (1 + _ROOT) / 88
_X2 = _X3 * (1 + _ROOT) / 352
_X4 = (-271 + 29 * _ROOT) / (315 * _X3)
_X5 = 11 * (-1 + _ROOT) / (1260 * _X3)
_X6 = 11 * (-9 + _ROOT) / (5040 * _X3)
_X7 = (89 - _ROOT) / (5040 * _X3**2)
_Y2 = (857 - 58 * _ROOT) / 630

# Largest relative error of exp(A), eps·‖A‖₂ for the rounding of A alone, at
# which a result is returned instead of nan.
_MAX_ROUNDING = 2.0**-7


def fast_expm1(
  a: jax.Array,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  large_steps: str = 'exponential',
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
  """Returns FastExp(a) − I for skew-symmetric `a` (paper §3.2), batched.

  The result is formed without I, so that it rounds relative to the small step.
  The exact branch has an error of about eps·‖a‖₂. The result is nan where that
  leaves no accuracy (‖a‖₂ > 6e4 in float32) and for non-finite input.

  The exponential rotates the plane of a pair of eigenvalues ±it by t. With
  `large_steps='projection'`, matrices above the last threshold rotate it by
  atan(t), less than a quarter turn: they become polar(I + a) − I (P.-A. Absil,
  J. Malick, "Projection-like Retractions on Matrix Manifolds", SIAM J. Optim.
  22(1), 2012, §3).

  Args:
    a: [..., n, n] float32 (or wider), skew-symmetric.
    thresholds: ascending bounds on ‖a‖_F below which the orders 2, 3 and 4 are
      used; (0, 0, 0): none of them is.
    large_steps: branch above the last threshold, 'exponential' (the paper's)
      or 'projection'.
    precision: precision of every product.

  Raises:
    ValueError: an option is none of the above.

  >>> a = jnp.array([[0.0, -0.01], [0.01, 0.0]])
  >>> round(fast_expm1(a)[1, 0].item(), 6)  # sin(0.01)
  0.01
  """
  if len(thresholds) != 3 or list(thresholds) != sorted(thresholds):
    raise ValueError(f'{thresholds=} must be three ascending numbers.')
  checks.choice('large_steps', large_steps, LARGE_STEPS)
  mm = functools.partial(jnp.matmul, precision=precision)

  def order2(a):
    return a + mm(a, a) / 2

  def order3(a):
    a2 = mm(a, a)
    return a + a2 / 2 + mm(a2, a) / 6

  def order4(a):
    a2 = mm(a, a)
    return a + a2 / 2 + mm(a2, a / 6 + a2 / 24)

  last = functools.partial(LARGE_STEPS[large_steps], precision)

  def one(a):
    norm = jnp.linalg.norm(a)
    # A nan passes no threshold; order 2 hands it on.
    branch = sum((norm >= t).astype(jnp.int32) for t in thresholds)
    return lax.switch(branch, [order2, order3, order4, last], a)

  return stack.map_stacks(one, a)


def fast_exp(a: jax.Array, **options: Any) -> jax.Array:
  """Returns FastExp(a) for skew-symmetric `a` (paper §3.2), batched.

  Arguments are those of `fast_expm1`, which keeps the digits of a small step.

  >>> fast_exp(jnp.zeros((3, 2, 2))).shape
  (3, 2, 2)
  """
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  return fast_expm1(a, **options) + jnp.broadcast_to(eye, a.shape)


def _exact_expm1(precision: lax.PrecisionLike, a: jax.Array) -> jax.Array:
  """Returns exp(a) − I by scaling and squaring.

  Squaring exp(B) turns exp(B) − I = C into exp(2B) − I = 2C + C².
  """
  mm = functools.partial(jnp.matmul, precision=precision)
  a2 = mm(a, a)
  _, squarings, scale = halvings(jnp.linalg.norm(a), jnp.sum(a2 * a2), 8)
  a, a2 = a * scale, a2 * jnp.square(scale)
  a4 = mm(a2, _X1 * a + _X2 * a2)
  right = _X5 * a + _X6 * a2 + _X7 * a4
  left = _X3 * a2 + a4
  a8 = mm(left, right) + _X4 * left
  c = a + _Y2 * a2 + a8
  return lax.fori_loop(0, squarings, lambda _, c: 2 * c + mm(c, c), c)


def halvings(norm, fourth, terms: int) -> tuple[jax.Array, ...]:
  """Bounds ‖A‖₂ by `norm` ‖A‖_F and `fourth` tr A⁴; counts the halvings of A.

  The eigenvalues of a skew A come in pairs ±it, so 2‖A‖₂² <= ‖A‖_F² and
  2‖A‖₂⁴ <= tr A⁴. The steps of elementwise rules spread over many planes, where
  the second bound is far sharper. At θ, where halving ends, the first omitted
  term of a Taylor series, θ^terms/(terms + 1)!, is half an ulp.

  Returns the bound, the number of halvings, and 2^−number: nan where the bound
  is nan or leaves no accuracy.
  """
  fourth_root = (jnp.maximum(fourth, 0) / 2) ** 0.25
  bound = jnp.minimum(norm / math.sqrt(2), fourth_root)
  eps = float(jnp.finfo(norm.dtype).eps)
  theta = (math.factorial(terms + 1) * eps / 2) ** (1 / terms)
  kept = bound * eps < _MAX_ROUNDING
  count = jnp.where(kept, jnp.ceil(jnp.log2(jnp.maximum(bound / theta, 1))), 0)
  scale = jnp.where(kept, jnp.exp2(-count), jnp.nan)
  return bound, count.astype(jnp.int32), scale


def _projected_expm1(precision: lax.PrecisionLike, a: jax.Array) -> jax.Array:
  """Returns polar(I + a) − I, by subtraction: `a` is not small."""
  eye = jnp.eye(a.shape[-1], dtype=a.dtype)
  q = retraction.polar_retract(eye + a, precision=precision)
  # Rounding of I + a changes its polar factor by eps·‖I + a‖₂.
  rounding = float(jnp.finfo(a.dtype).eps) * jnp.linalg.norm(a) / math.sqrt(2)
  return jnp.where(rounding < _MAX_ROUNDING, q - eye, jnp.nan)


LARGE_STEPS = {'exponential': _exact_expm1, 'projection': _projected_expm1}
