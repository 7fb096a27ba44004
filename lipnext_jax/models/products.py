"""Products x Wᵀ of token rows x with matrices W, and their gradients.

The gradient of a matrix has the matrix's own, wider dtype, so that it can be
summed over devices before it is rounded.
"""

import functools
from typing import NamedTuple

from flax.typing import Dtype
import jax
from jax import lax
import jax.numpy as jnp


class Numerics(NamedTuple):
  """The arithmetic of a network's products."""

  dtype: Dtype = jnp.float32  # Operands and results.
  precision: lax.PrecisionLike = None  # As for `jnp.matmul`.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(numerics: Numerics, x: jax.Array, w: jax.Array) -> jax.Array:
  """Computes x wᵀ for x [t, c] and w [d, c]."""
  x, w = (a.astype(numerics.dtype) for a in (x, w))
  return _dot(numerics, x, w, (1, 1), numerics.dtype)


def _product_fwd(numerics, x, w):
  return product(numerics, x, w), (x, w)


def _product_bwd(numerics, saved, g):
  x, w = saved
  dw = _dot(numerics, g, x.astype(g.dtype), (0, 0), w.dtype)
  # dw before dx: then x is free, and dx can take its memory.
  dw, w = lax.optimization_barrier((dw, w.astype(g.dtype)))
  return _dot(numerics, g, w, (1, 0), x.dtype), dw


product.defvjp(_product_fwd, _product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mix(
  numerics: Numerics, y: jax.Array, d: jax.Array, r: jax.Array, m: jax.Array
) -> jax.Array:
  """Computes (y + d R) Mᵀ, which is M (y + Rᵀ d) for every token.

  The backward pass neither keeps nor recomputes y + d R: with B = gᵀ d [c, k],
  the gradient of M is gᵀ y + B R, and that of R is Bᵀ M. Shapes: y [t, a],
  d [t, k], R [k, a], M [c, a].
  """
  y, d, r, m = (a.astype(numerics.dtype) for a in (y, d, r, m))
  z = y + _dot(numerics, d, r, (1, 0), y.dtype)
  return _dot(numerics, z, m, (1, 1), numerics.dtype)


def _mix_fwd(numerics, y, d, r, m):
  return mix(numerics, y, d, r, m), (y, d, r, m)


def _mix_bwd(numerics, saved, g):
  y, d, r, m = saved
  r_narrow, m_narrow = r.astype(g.dtype), m.astype(g.dtype)
  dz = _dot(numerics, g, m_narrow, (1, 0), y.dtype)
  dd = _dot(numerics, dz.astype(g.dtype), r_narrow, (1, 1), d.dtype)
  b = _dot(numerics, g, d.astype(g.dtype), (0, 0), m.dtype)
  narrow = b.astype(g.dtype)
  dm = _dot(numerics, g, y.astype(g.dtype), (0, 0), m.dtype)
  dm += _dot(numerics, narrow, r_narrow, (1, 0), m.dtype)
  dr = _dot(numerics, narrow, m_narrow, (0, 0), r.dtype)
  return dz, dd, dr, dm


mix.defvjp(_mix_fwd, _mix_bwd)


def _dot(numerics, x, y, axes, out_dtype):
  """Contracts one axis of two matrices."""

  def contract(x, y):
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(
      x, y, dims, precision=numerics.precision, preferred_element_type=out_dtype
    )

  def on_cpu(x, y):
    # On CPUs, XLA lacks products of narrow operands with a wide result for some
    # shapes, and is slow at contracting rows: so xᵀ is laid out by rows first.
    wide = jnp.promote_types(x.dtype, out_dtype)
    x, y = x.astype(wide), y.astype(wide)
    if axes != (0, 0):
      return contract(x, y)
    if 8 * y.shape[1] <= x.shape[1]:  # The stem's patches: cheaper to lay out.
      return on_cpu(y, x).T
    dims = (((1,), (0,)), ((), ()))
    # Without the barrier XLA merges the transpose again. Pinning the layout
    # would gather tokens of all devices.
    xt = lax.optimization_barrier(x.T)
    out = lax.dot_general(xt, y, dims, precision=numerics.precision)
    return out.astype(out_dtype)

  # Second derivatives of a scan fail at `platform_dependent` (jax 0.10.2): only
  # where platforms differ.
  if axes != (0, 0) and x.dtype == y.dtype == out_dtype:
    return contract(x, y)
  return lax.platform_dependent(x, y, cpu=on_cpu, default=contract)
