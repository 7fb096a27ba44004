"""Polar retraction X = UΣVᵀ ↦ UVᵀ to the orthogonal group (paper §3.2(a))."""

import math

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import stack

# A singular value of 1e-6 grows by 1.5 per iteration and is of order one after
# log(1e6)/log(1.5) = 34 of them. Then convergence is quadratic.
_MAX_ITERATIONS = 60


def polar_retract(
  x: jax.Array,
  method: str = 'newton_schulz',
  *,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
  """Returns the polar factor UVᵀ of x = UΣVᵀ, batched.

  It is the nearest matrix with orthonormal columns (rows, for wide x). The
  paper takes an SVD. 'newton_schulz' iterates X ← X(3I − XᵀX)/2, which squares
  the defect XᵀX − I and is much faster: 2 products for a matrix that drifted.
  A singular matrix, which has no unique factor, gives the last iterate; a
  matrix without a finite factor is returned unchanged.

  Args:
    x: [..., m, n], float32 or wider; full rank, of any scale.
    method: 'newton_schulz' or 'svd'.
    precision: precision of every product.

  Raises:
    ValueError: `method` is unknown.

  >>> x = jnp.eye(3) + 0.01 * jnp.ones((3, 3))
  >>> [bool(orthogonality_error(y) < 1e-6) for y in (x, polar_retract(x))]
  [False, True]
  """
  if method not in METHODS:
    raise ValueError(f'{method=} must be one of {sorted(METHODS)}.')

  def one(x):
    if x.shape[0] < x.shape[1]:
      return one(x.T).T
    # LAPACK's SVD of an infinity may not return.
    finite = jnp.all(jnp.isfinite(x))
    y = METHODS[method](_unit_scale(jnp.where(finite, x, 0)), precision)
    return jnp.where(finite & jnp.all(jnp.isfinite(y)), y, x)

  return stack.map_stacks(one, x)


def orthogonality_error(
  x: jax.Array, *, iterations: int | None = None
) -> jax.Array:
  """Measures ‖xᵀx − I‖₂ (‖xxᵀ − I‖₂ for wide x), the spectral norm, batched.

  Args:
    x: [..., m, n].
    iterations: number of power iterations, O(n²) each, for an estimate from
      below; None: exact, from the eigenvalues of xᵀx − I, O(n³).

  >>> orthogonality_error(2 * jnp.eye(4)).item()
  3.0
  """

  def one(x):
    x = x if x.shape[0] >= x.shape[1] else x.T
    if iterations is None:
      d = _defect(x, lax.Precision.HIGHEST)
      return jnp.max(jnp.abs(jnp.linalg.eigvalsh(d)))

    def step(_, carry):
      # D = XᵀX − I is indefinite, so that only the norm converges.
      v, norm = carry
      v = v / jnp.where(norm > 0, norm, 1)
      xv = jnp.matmul(x, v, precision=lax.Precision.HIGHEST)
      v = jnp.matmul(xv, x, precision=lax.Precision.HIGHEST) - v  # D·v.
      return v, jnp.linalg.norm(v)

    v = jax.random.normal(jax.random.key(0), x.shape[1:], x.dtype)
    return lax.fori_loop(0, iterations, step, (v, jnp.linalg.norm(v)))[1]

  return jnp.vectorize(one, signature='(m,n)->()')(x)


def _defect(x: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
  """Returns XᵀX − I of one matrix [m, n]."""
  eye = jnp.eye(x.shape[1], dtype=x.dtype)
  return jnp.matmul(x.T, x, precision=precision) - eye


def _newton_schulz(x: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
  """Iterates X ← X − X·D/2, D = XᵀX − I, until D is rounding."""
  eye = jnp.eye(x.shape[1], dtype=x.dtype)
  eps = float(jnp.finfo(x.dtype).eps)
  # An iteration takes ‖D‖ = δ to 3/4 δ² + O(δ³), so one from √eps ends at eps.
  # ‖D‖_F itself has a rounding error of about n·eps.
  near = max(eps**0.5, 4 * len(eye) * eps)

  def step(x, d):
    return x - jnp.matmul(x, d, precision=precision) / 2

  def body(carry):
    x, d, i = carry
    x = step(x, d)
    return x, _defect(x, precision), i + 1

  def far(carry):
    _, d, i = carry
    return (jnp.linalg.norm(d) > near) & (i < _MAX_ITERATIONS)

  # The iteration converges for ‖X‖₂ < √3. Where ‖D‖_F >= 1, X is divided by
  # √(1 + ‖D‖_F) >= ‖X‖₂.
  d = _defect(x, precision)
  norm = jnp.linalg.norm(d)
  squared = jnp.where(norm < 1, 1, 1 + norm)
  d = (d + eye) / squared - eye
  # A zero matrix, the padding of a stack, takes no iterations.
  start = jnp.where(jnp.any(x != 0), 0, _MAX_ITERATIONS)
  x, d, _ = lax.while_loop(far, body, (x / jnp.sqrt(squared), d, start))
  return step(x, d)


def _svd(x: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
  """Returns UVᵀ from a thin singular value decomposition."""
  u, _, vt = jnp.linalg.svd(x, full_matrices=False)
  return jnp.matmul(u, vt, precision=precision)


def _unit_scale(x: jax.Array) -> jax.Array:
  """Scales X to ‖X‖_F = √n if it is far from that: no product overflows."""
  largest = jnp.max(jnp.abs(x))
  largest = jnp.where(largest == 0, 1, largest)
  unit = jnp.linalg.norm(x / largest)  # Cannot overflow.
  factor = math.sqrt(x.shape[1]) / jnp.where(unit == 0, 1, unit) / largest
  return jnp.where((factor > 0.5) & (factor < 2), x, x * factor)


METHODS = {'newton_schulz': _newton_schulz, 'svd': _svd}
