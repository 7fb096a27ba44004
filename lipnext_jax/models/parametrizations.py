"""Maps from free to orthogonal matrices, for comparison (paper §2).

These are alternatives to optimising on the manifold: a raw matrix is trained as
a Euclidean parameter and mapped into O(n) in every forward pass. The raw leaf
of R is named `R_raw`. Whatever the model's dtype, maps compute in float32 or
wider, at the highest precision.

References: K. Helfrich, D. Willmott, Q. Ye, ICML 2018, and A. Trockman,
J. Z. Kolter, ICLR 2021 (Cayley); M. Lezcano-Casado, D. Martínez-Rubio, ICML
2019, and S. Singla, S. Feizi, ICML 2021 (exponential, SOC); K. Hu et al.,
ICLR 2024 (Cholesky, LiResNet++); B.-H. Lai et al., ICML 2025 (block reflector,
BRONet).
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lipnext_jax.optim import retraction

RAW = '_raw'  # Suffix of the names of mapped leaves.
# Multiple of the mean eigenvalue that is added to VVᵀ, about the rounding of
# float32. It keeps Cholesky from failing, and makes W shrink slightly.
_RIDGE = 1e-6


def _skew(v: jax.Array) -> jax.Array:
  return v - jnp.swapaxes(v, -1, -2)


def for_each(f: Callable[..., jax.Array], *stacks: jax.Array) -> jax.Array:
  """Applies f to stacks [..., m, n] of matrices; on CPUs one by one.

  jaxlib (0.10.2) runs a batch of LAPACK calls on the thread pool in which it
  waits for them: two batches at once, on virtual CPU devices, deadlock.
  """
  batch = stacks[0].shape[:-2]
  if not batch:
    return f(*stacks)

  def one_by_one(*stacks):
    flat = [x.reshape(-1, *x.shape[-2:]) for x in stacks]
    out = jax.lax.map(lambda matrices: f(*matrices), flat)
    return out.reshape(*batch, *out.shape[-2:])

  return jax.lax.platform_dependent(*stacks, cpu=one_by_one, default=f)


def cayley(v: jax.Array) -> jax.Array:
  """Computes (I − A)⁻¹(I + A), A = V − Vᵀ, for V [..., n, n].

  It reaches the rotations (det W = 1) without the eigenvalue −1.

  >>> cayley(jnp.array([[0.0, 1.0], [0.0, 0.0]])).tolist()  # A quarter turn.
  [[0.0, 1.0], [-1.0, 0.0]]
  """
  a = _skew(v)
  eye = jnp.broadcast_to(jnp.eye(v.shape[-1], dtype=v.dtype), v.shape)
  return for_each(jnp.linalg.solve, eye - a, eye + a)


def exponential(v: jax.Array) -> jax.Array:
  """Computes exp(V − Vᵀ) for V [..., n, n]; every rotation is one.

  >>> v = jnp.array([[0.0, jnp.pi / 2], [0.0, 0.0]])
  >>> exponential(v).round(5).tolist()
  [[0.0, 1.0], [-1.0, 0.0]]
  """
  with jax.default_matmul_precision('highest'):
    return for_each(jax.scipy.linalg.expm, _skew(v))


def cholesky(v: jax.Array) -> jax.Array:
  """Computes L⁻¹V, L the Cholesky factor of VVᵀ: Gram–Schmidt on the rows.

  V [..., m, n] has full rank; an orthogonal V is mapped to itself, and a tall V
  to orthonormal columns. VVᵀ is shifted by 1e-6 of its mean eigenvalue, which
  shrinks W as much.

  >>> w = cholesky(jnp.array([[2.0, 0.0, 0.0], [2.0, 0.0, 3.0]]))
  >>> abs(w.round(4)).tolist()
  [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
  """
  if v.shape[-2] > v.shape[-1]:
    return jnp.swapaxes(cholesky(jnp.swapaxes(v, -1, -2)), -1, -2)
  with jax.default_matmul_precision('highest'):
    gram = v @ jnp.swapaxes(v, -1, -2)
    mean = jnp.mean(jnp.square(v), axis=(-2, -1), keepdims=True) * v.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=v.dtype), gram.shape)
    return for_each(_whiten, gram + _RIDGE * mean * eye, v)


def _whiten(gram: jax.Array, v: jax.Array) -> jax.Array:
  """Computes L⁻¹V for L Lᵀ = gram."""
  factor = jnp.linalg.cholesky(gram)
  return jax.scipy.linalg.solve_triangular(factor, v, lower=True)


def projector_factor(v: jax.Array) -> jax.Array:
  """Computes V (VᴴV)⁻¹ for V [..., n, r]; times Vᴴ, it is a projector."""
  adjoint = jnp.swapaxes(v.conj(), -1, -2)
  with jax.default_matmul_precision('highest'):
    factor = for_each(jnp.linalg.solve, adjoint @ v, adjoint)
  return jnp.swapaxes(factor.conj(), -1, -2)


def block_reflector(v: jax.Array, rows: int | None = None) -> jax.Array:
  """Computes I − 2V(VᴴV)⁻¹Vᴴ, which negates the span of V's columns.

  V [..., n, r], real or complex, has full rank; the result is symmetric or
  Hermitian. With `rows`, only so many are kept.

  >>> block_reflector(jnp.array([[3.0], [0.0]])).tolist()
  [[-1.0, 0.0], [0.0, 1.0]]
  """
  n = v.shape[-2]
  m = n if rows is None else rows
  cut = projector_factor(v)[..., :m, :]
  with jax.default_matmul_precision('highest'):
    projected = cut @ jnp.swapaxes(v.conj(), -1, -2)
  eye = jnp.eye(m, n, dtype=v.dtype)
  return jnp.broadcast_to(eye, projected.shape) - 2 * projected


def haar(key, shape, dtype=jnp.float32) -> jax.Array:
  """Draws the first m rows of a Haar-random orthogonal [n, n].

  It is the QR factor of a Gaussian with fixed signs, after one Newton–Schulz
  step, because QR in float32 is a few 1e-6 off at n = 1024.

  >>> from lipnext_jax.optim import orthogonality_error
  >>> bool(orthogonality_error(haar(jax.random.key(0), (64, 64))) < 2e-6)
  True
  """
  q = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
  return retraction.polar_retract(q).astype(dtype)


ORTHOGONAL: dict[str, Callable[..., jax.Array]] = {
  'haar': haar,
  'identity': lambda key, shape, dtype: jnp.eye(*shape).astype(dtype),
}


class Parametrization(NamedTuple):
  """Map into O(n), with its initializers."""

  to_orthogonal: Callable[[jax.Array], jax.Array]  # Its first m rows are used.
  raw_shape: Callable[[int, int], tuple[int, int]]  # (m, n) → that of V.
  initializers: Mapping[str, Any]  # By name, like `ORTHOGONAL`, for V.


def _gaussian(key, shape, dtype=jnp.float32):
  """Draws a Gaussian V; V − Vᵀ has eigenvalues up to about ±2√2·i."""
  return jax.random.normal(key, shape, dtype) * shape[-2] ** -0.5


_SKEW = {'haar': _gaussian, 'identity': nn.initializers.zeros}

PARAMETRIZATIONS: dict[str, Parametrization] = {
  'cayley': Parametrization(cayley, lambda m, n: (n, n), _SKEW),
  'exponential': Parametrization(exponential, lambda m, n: (n, n), _SKEW),
  # Gram–Schmidt: row i of W depends only on the rows 1 … i of V.
  'cholesky': Parametrization(cholesky, lambda m, n: (m, n), ORTHOGONAL),
  # Half of the columns: the largest family. The identity is not among them.
  'block_reflector': Parametrization(
    block_reflector, lambda m, n: (n, max(1, n // 2)), {'haar': _gaussian}
  ),
}
CHOICES = ('none', *PARAMETRIZATIONS)  # 'none': the matrix is the parameter.


def orthogonal_param(
  module: nn.Module,
  name: str,
  shape: tuple[int, int],
  init: str,
  parametrization: str,
) -> jax.Array:
  """Makes a parameter of `module` with orthonormal rows, stored or mapped.

  Its leaf is `name`, or `name` + '_raw' if mapped. Maps but Cholesky's make
  [n, n], cut to the m rows of `shape` (m, n). `init` is 'haar' (random; of the
  Haar measure for 'none' and 'cholesky') or 'identity'.

  Raises:
    ValueError: an `init` that the map does not reach.
  """
  p = None if parametrization == 'none' else PARAMETRIZATIONS[parametrization]
  starts = p.initializers if p else ORTHOGONAL
  if init not in starts:
    raise ValueError(
      f'{parametrization=} cannot start at {init!r}: choose from '
      f'{sorted(starts)}.'
    )
  if p is None:
    return module.param(name, starts[init], shape, jnp.float32)
  raw = module.param(name + RAW, starts[init], p.raw_shape(*shape), jnp.float32)
  return p.to_orthogonal(raw)[: shape[0]]
