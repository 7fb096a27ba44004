"""Manifold steps of tall matrices X [m, n], m ≫ n, with small products.

`manifold` rotates X by a skew matrix of its longer side. Here that matrix,
A [m, m], stays factored:

    Ω = skew(GXᵀ) X = (G − X GᵀX)/2      gradient G in the tangent space at X
    D = Y − X sym(XᵀY)                   tangent part of Y = inner.update(Ω)
    A = UVᵀ, U = [P, X], V = [X, −P]     P = (I − XXᵀ/2) D; A is skew, AX = D
    X ← exp(A) X = X + U φ(Z) VᵀX        Z = VᵀU, φ(z) = (eᶻ − 1)/z

Z is 2n×2n, and no array is larger than X. A step takes 7 products of size mn²
and some of size n³. With SGD, A = −lr·skew(GXᵀ), as there. Moments and the
lookahead's sum add tangents of different X, of which D takes the tangent part.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import exponential
from lipnext_jax.optim import retraction

_DEGREE = 8  # Degree of φ's Taylor polynomial in the exact branch.


def tangent(
  x: jax.Array, g: jax.Array, precision: lax.PrecisionLike
) -> jax.Array:
  """Returns Ω = (G − X GᵀX)/2, the gradient G [m, n] made tangent at X."""
  mm = functools.partial(jnp.matmul, precision=precision)
  return (g - mm(x, mm(g.T, x))) / 2


def rotate(
  x: jax.Array,
  y: jax.Array,
  *,
  thresholds: Sequence[float] = exponential.THRESHOLDS,
  large_steps: str = 'exponential',
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> jax.Array:
  """Returns FastExp(A)X − X for X and a step Y [m, n].

  The options are those of `fast_expm1`, with ‖A‖_F in the place of ‖a‖_F. The
  projection goes to the matrix with orthonormal columns nearest to X + D.
  """
  mm = functools.partial(jnp.matmul, precision=precision)
  n = x.shape[1]
  xx, xy, yy = mm(x.T, x), mm(x.T, y), mm(y.T, y)
  # P = Y − XB with B = sym(XᵀY) + skew(XᵀY)/2 is not formed: its products with
  # X and itself follow from those of Y. XᵀX is not replaced by I, so that A is
  # skew, and the step a rotation, for any X.
  b = (3 * xy + xy.T) / 4
  xb, yb = mm(xx, b), mm(xy.T, b)
  xp = xy - xb
  pp = yy - yb - yb.T + mm(b.T, xb)
  squares = 2 * (jnp.sum(pp * xx) - jnp.sum(xp * xp.T))
  norm = jnp.sqrt(jnp.maximum(squares, 0))  # ‖A‖_F; nan stays nan.
  z = jnp.block([[xp, xx], [-pp, -xp.T]])
  vx = jnp.concatenate([xx, -xp.T])

  def moved(c):
    return mm(y, c[:n]) + mm(x, c[n:] - mm(b, c[:n]))

  def taylor(order):
    c = vx
    for k in range(order, 1, -1):
      c = vx + mm(z, c) / k
    return moved(c)

  def exact():
    return moved(_exact(norm, z, vx, mm))

  def projection():
    d = y - mm(x, (xy + xy.T) / 2)
    return retraction.polar_retract(x + d, precision=precision) - x

  orders = [functools.partial(taylor, order) for order in (2, 3, 4)]
  last = {'exponential': exact, 'projection': projection}[large_steps]
  branch = sum((norm >= t).astype(jnp.int32) for t in thresholds)
  return lax.switch(branch, [*orders, last])


def _exact(norm, z, vx, mm) -> jax.Array:
  """Returns φ(Z)VᵀX by scaling and doubling, φ(2h) = φ(h) + h φ(h)²/2."""
  # With U and V scaled to the same size, ‖Z‖₂ <= 2‖A‖₂. And tr Z⁴ = tr A⁴.
  z2 = mm(z, z)
  bound, doublings, factor = exponential.halvings(
    2 * norm, 16 * jnp.sum(z2 * z2.T), _DEGREE + 1
  )
  is_p = jnp.arange(len(z)) < len(z) // 2
  scale = jnp.where(is_p & (bound > 0), bound / 2, 1)[:, None]
  h = scale * z / scale.T * factor
  eye = jnp.eye(len(z), dtype=z.dtype)
  phi = eye
  for k in range(_DEGREE + 1, 1, -1):
    phi = eye + mm(h, phi) / k

  def double(_, carry):
    h, phi = carry
    return 2 * h, phi + mm(mm(h, phi), phi) / 2

  _, phi = lax.fori_loop(0, doublings, double, (h, phi))
  return mm(phi, scale * vx) / scale
