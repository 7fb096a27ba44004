"""Back onto the orthogonal group: polar retraction X ← UVᵀ (paper §3.2(a)).

Both methods return the nearest matrix with orthonormal columns (rows, for wide
matrices) in the Frobenius norm. Newton–Schulz uses products only: it shards,
never fails to converge on near-orthogonal input, and is far faster than an SVD.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import stack

# A start with a singular value of 1e-6 gains a factor 1.5 per iteration until
# it is of order one: log(1e6)/log(1.5) = 34, plus the quadratic phase.
_MAX_ITERATIONS = 60


def polar_retract(
  x: jax.Array,
  method: str = 'newton_schulz',
  *,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
  """The orthogonal polar factor UVᵀ of x = UΣVᵀ, batched.

  'newton_schulz' iterates X ← X(3I − XᵀX)/2, squaring the defect each time:
  2 products for a matrix that drifted, 2 more per iteration for one that
  starts far away (scaled first). Exactly singular input has no unique factor,
  and comes back as the iterate reached. 'svd' is the paper's.

  A result that is not finite is never returned for finite input: that matrix
  comes back unchanged.

  Args:
    x: [..., m, n], float32 or wider; full rank, of any scale.
    method: 'newton_schulz' or 'svd'.
    precision: of the products of Newton–Schulz and of UVᵀ.

  Returns:
    [..., m, n], the dtype of `x`, orthonormal along the smaller side.

  Raises:
    ValueError: an unknown method, or an input without two axes.

  >>> x = jnp.eye(3) + 0.01 * jnp.ones((3, 3))
  >>> bool(orthogonality_error(x) > 1e-2)
  True
  >>> bool(orthogonality_error(polar_retract(x)) < 1e-6)
  True
  """
  if method not in METHODS:
    raise ValueError(f'{method=} must be one of {sorted(METHODS)}.')
  if x.ndim < 2:
    raise ValueError(f'polar_retract needs matrices, got {x.shape=}.')
  tall = x.shape[-2] >= x.shape[-1]
  y = x if tall else jnp.swapaxes(x, -1, -2)
  one = functools.partial(_guarded, METHODS[method], precision)
  y = stack.map_matrices(one, y)
  return y if tall else jnp.swapaxes(y, -1, -2)


def orthogonality_error(
  x: jax.Array, *, iterations: int | None = None
) -> jax.Array:
  """‖xᵀx − I‖₂ (‖xxᵀ − I‖₂ for wide x): unnormalised, spectral, batched.

  Args:
    x: [..., m, n].
    iterations: None: exactly, by eigenvalues of the defect (O(n³)). A number:
      so many power iterations from a fixed start, O(n²) each, an estimate
      from below to watch training with.

  Returns:
    [...], the dtype of `x`. Not a proved bound: `lipnext_jax.certify` has one.

  >>> orthogonality_error(2 * jnp.eye(4)).item()
  3.0
  >>> orthogonality_error(jnp.ones((5, 1, 3)) / jnp.sqrt(3)).shape
  (5,)
  """
  if x.shape[-2] < x.shape[-1]:
    x = jnp.swapaxes(x, -1, -2)
  if iterations is None:
    d = _defect(x, lax.Precision.HIGHEST)
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(d)), axis=-1)

  # Matrix-free: d v = xᵀ(x v) − v. D is symmetric but indefinite, and power
  # iteration on it converges in norm whatever the sign.
  def product(v):
    xv = jnp.einsum('...mn,...n->...m', x, v, precision='highest')
    return jnp.einsum('...mn,...m->...n', x, xv, precision='highest') - v

  def step(_, carry):
    v, _ = carry
    norm_in = jnp.linalg.norm(v, axis=-1, keepdims=True)
    v = v / jnp.where(norm_in > 0, norm_in, 1)
    v = product(v)
    return v, jnp.linalg.norm(v, axis=-1)

  start = jax.random.normal(jax.random.key(0), (x.shape[-1],), x.dtype)
  start = jnp.broadcast_to(
    jnp.expand_dims(start, tuple(range(x.ndim - 2))),
    x.shape[:-2] + x.shape[-1:],
  )
  zero = jnp.zeros(x.shape[:-2], x.dtype)
  return lax.fori_loop(0, iterations, step, (start, zero))[1]


def _defect(x, precision):
  """xᵀx − I for x [..., m, n]."""
  gram = jnp.matmul(jnp.swapaxes(x, -1, -2), x, precision=precision)
  eye = jnp.eye(x.shape[-1], dtype=x.dtype)
  return gram - jnp.expand_dims(eye, tuple(range(x.ndim - 2)))


def _newton_schulz(x: jax.Array, empty: jax.Array, precision) -> jax.Array:
  """X ← X + X·(−D/2), D = XᵀX − I, until the next defect is rounding."""
  n = x.shape[-1]
  eps = float(jnp.finfo(x.dtype).eps)
  # One step takes a defect δ to at most δ² (3/4 δ² + O(δ³)), so a step from
  # δ <= √eps ends at eps. ‖D‖_F itself rounds by about n·eps.
  near = max(eps**0.5, 4 * n * eps)

  def scaled_defect(x):
    """Shrinks X into the region of convergence (‖X‖₂ < √3) if it is outside."""
    d = _defect(x, precision)
    norm = jnp.linalg.norm(d)
    # ‖X‖₂² <= 1 + ‖D‖_F; inside 1 + ‖D‖_F < 3 the iteration converges as is.
    squared = jnp.where(norm < 1, 1, 1 + norm)
    eye = jnp.eye(n, dtype=x.dtype)
    return x / jnp.sqrt(squared), (d + eye) / squared - eye

  def step(x, d):
    return x - jnp.matmul(x, d, precision=precision) / 2

  def body(carry):
    x, d, i = carry
    x = step(x, d)
    return x, _defect(x, precision), i + 1

  def far(carry):
    _, d, i = carry
    return (jnp.linalg.norm(d) > near) & (i < _MAX_ITERATIONS)

  x, d = scaled_defect(x)
  # Nothing can be done for a zero matrix (the padding of a stack).
  start = jnp.where(empty, _MAX_ITERATIONS, 0)
  x, d, _ = lax.while_loop(far, body, (x, d, start))
  return step(x, d)


def _unit_scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """X scaled to ‖X‖_F = √n where it is far from that, and whether X = 0.

  Scale does not change the polar factor; in products it could overflow. A
  matrix near the manifold is left alone to the bit.
  """
  n = x.shape[-1]
  largest = jnp.max(jnp.abs(x))
  empty = largest == 0
  largest = jnp.where(empty, 1, largest)
  unit = jnp.linalg.norm(x / largest)  # Cannot overflow.
  factor = math.sqrt(n) / jnp.where(empty, 1, unit) / largest
  return jnp.where((factor > 0.5) & (factor < 2), x, x * factor), empty


def _svd(x: jax.Array, empty: jax.Array, precision) -> jax.Array:
  """UVᵀ from a thin singular value decomposition."""
  del empty  # Unused.
  u, _, vt = jnp.linalg.svd(x, full_matrices=False)
  return jnp.matmul(u, vt, precision=precision)


def _guarded(method, precision, x: jax.Array) -> jax.Array:
  """A retraction that returns its input where the result is not finite."""
  finite = jnp.all(jnp.isfinite(x))
  # LAPACK's SVD of an infinity may never come back.
  x_safe, empty = _unit_scale(jnp.where(finite, x, 0))
  y = method(x_safe, empty, precision)
  return jnp.where(finite & jnp.all(jnp.isfinite(y)), y, x)


METHODS = {'newton_schulz': _newton_schulz, 'svd': _svd}
