"""Manifold steps of matrices X [m, n] far from square, with small products.

`manifold` rotates X by a skew matrix of its longer side. For m ≫ n (wide
matrices are transposed), this module keeps that matrix A [m, m] factored:

    Ω = skew(GXᵀ) X = (G − X GᵀX)/2      gradient G in the tangent space at X
    D = Y − X sym(XᵀY)                   tangent part of Y = inner.update(Ω)
    A = UVᵀ, U = [P, X], V = [X, −P]     P = (I − XXᵀ/2) D; A is skew, AX = D
    X ← exp(A) X = X + U φ(Z) VᵀX        Z = VᵀU, φ(z) = (eᶻ − 1)/z

Z is 2n×2n, and no array is larger than X. A step takes 7 products of size mn²
and some of size n³. With SGD, A = −lr·skew(GXᵀ), as in `manifold`.
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from lipnext_jax.optim import exponential
from lipnext_jax.optim import products
from lipnext_jax.optim import retraction

_DEGREE = 8  # Degree of φ's Taylor polynomial in the exact branch.


def tangent(
  x: jax.Array, g: jax.Array, *, precision: lax.PrecisionLike
) -> jax.Array:
  """Returns Ω = (G − X GᵀX)/2, the gradient G [m, n] made tangent at X."""
  if x.shape[0] < x.shape[1]:
    return tangent(x.T, g.T, precision=precision).T
  gx = products.product(g.T, x, precision)
  return (g - products.product(x, gx, precision)) / 2


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
  if x.shape[0] < x.shape[1]:
    return rotate(
      x.T,
      y.T,
      thresholds=thresholds,
      large_steps=large_steps,
      precision=precision,
    ).T
  mm = functools.partial(products.product, precision=precision)
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

  z, vx = _blocks(xx, xp, pp)

  def taylor(order):
    c = vx
    for k in range(order, 1, -1):
      c = vx + mm(z, c) / k
    return c

  def exact():
    return _exact(norm, z, xx, xp, pp, mm)

  def exponential_step(last):
    orders = [functools.partial(taylor, order) for order in (2, 3, 4)]
    branch = sum(
      (norm >= t).astype(jnp.int32) for t in thresholds[: len(last) + 2]
    )
    c = lax.switch(branch, [*orders, *last])
    return mm(y, c[:n]) + mm(x, c[n:] - mm(b, c[:n]))

  def projection():
    d = y - mm(x, (xy + xy.T) / 2)
    return retraction.polar_retract(x + d, precision=precision) - x

  if large_steps == 'exponential':
    return exponential_step([exact])
  small = functools.partial(exponential_step, [])
  return lax.cond(norm >= thresholds[-1], projection, small)


def _blocks(xx, xp, pp, scale=1.0) -> tuple[jax.Array, jax.Array]:
  """Returns Z = VᵀU and VᵀX, for U = [P/scale, X] and V = [scale·X, −P]."""
  z = jnp.block([[xp, scale * xx], [-pp / scale, -xp.T]])
  return z, jnp.concatenate([scale * xx, -xp.T])


def _exact(norm, z, xx, xp, pp, mm) -> jax.Array:
  """Returns φ(Z)VᵀX by scaling and doubling, φ(2h) = φ(h) + h φ(h)²/2."""
  # A is skew: 2‖A‖₂⁴ <= tr A⁴ = tr Z⁴, see `exponential`.
  z2 = mm(z, z)
  fourth = jnp.maximum(jnp.sum(z2 * z2.T), 0) / 2
  spectral = jnp.minimum(norm / math.sqrt(2), fourth**0.25)
  kept = spectral * float(jnp.finfo(z.dtype).eps) < exponential.MAX_ROUNDING
  # With U and V scaled to the same size, ‖Z‖₂ <= 2‖A‖₂.
  scale = jnp.where(kept & (spectral > 0), spectral, 1)
  z, vx = _blocks(xx, xp, pp, scale)
  # The truncation error θ⁹/10! is at most half an ulp of φ ≈ 1.
  eps = float(jnp.finfo(z.dtype).eps)
  theta = (math.factorial(_DEGREE + 2) * eps / 2) ** (1 / (_DEGREE + 1))
  doublings = jnp.ceil(jnp.log2(jnp.maximum(2 * spectral / theta, 1)))
  doublings = jnp.where(kept, doublings, 0)
  h = z * jnp.where(kept, jnp.exp2(-doublings), jnp.nan)

  eye = jnp.eye(len(z), dtype=z.dtype)
  phi = eye
  for k in range(_DEGREE + 1, 1, -1):
    phi = eye + mm(h, phi) / k

  def double(_, carry):
    h, phi = carry
    return 2 * h, phi + mm(mm(h, phi), phi) / 2

  times = doublings.astype(jnp.int32)
  _, phi = lax.fori_loop(0, times, double, (h, phi))
  c = mm(phi, vx)
  n = len(xx)
  return jnp.concatenate([c[:n] / scale, c[n:]])
