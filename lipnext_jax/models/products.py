"""Products of token rows x with matrices W, x Wᵀ, and their gradients.

The gradient of a matrix leaves its product in the matrix's own, wider dtype, so
that it can be summed over devices without rounding first.
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
  """Computes x wᵀ for x [t, c] and w [d, c].

  >>> x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((4, 3))
  >>> product(Numerics(jnp.bfloat16), x, w).shape
  (2, 4)
  """
  x, w = (a.astype(numerics.dtype) for a in (x, w))
  return _dot(numerics, x, w, (1, 1), numerics.dtype)


def _product_fwd(numerics, x, w):
  return product(numerics, x, w), (x, w)


def _product_bwd(numerics, saved, g):
  x, w = saved
  dw = _dot(numerics, g, x.astype(g.dtype), (0, 0), w.dtype)
  # dw before dx: x is not needed any more then, and dx can have its memory.
  dw, w = lax.optimization_barrier((dw, w.astype(g.dtype)))
  return _dot(numerics, g, w, (1, 0), x.dtype), dw


product.defvjp(_product_fwd, _product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mix(
  numerics: Numerics, y: jax.Array, d: jax.Array, r: jax.Array, m: jax.Array
) -> jax.Array:
  """Computes (y + d R) Mᵀ, which is M (y + Rᵀ d) for every token.

  Its gradients need neither y + d R nor a product of all tokens to form it
  again: with B = gᵀ d, [c, k], that of M is gᵀ y + B R and that of R is Bᵀ M.

  Args:
    numerics: of all products.
    y: [t, a].
    d: [t, k].
    r: [k, a].
    m: [c, a].

  >>> y, d, eye = jnp.ones((1, 2)), jnp.full((1, 1), 3.0), jnp.eye(2)
  >>> mix(Numerics(), y, d, eye[:1], 2 * eye).tolist()
  [[8.0, 2.0]]
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
    # XLA has no product of narrow operands with a wide result for every shape
    # there, and is slow at contracting rows: xᵀ is laid out by rows before.
    wide = jnp.promote_types(x.dtype, out_dtype)
    x, y = x.astype(wide), y.astype(wide)
    if axes != (0, 0):
      return contract(x, y)
    dims = (((1,), (0,)), ((), ()))
    # A barrier, or the transpose is merged again. (`optim.products.transposed`
    # pins the layout, which would gather tokens that are spread over devices.)
    xt = lax.optimization_barrier(x.T)
    out = lax.dot_general(xt, y, dims, precision=numerics.precision)
    return out.astype(out_dtype)

  return lax.platform_dependent(x, y, cpu=on_cpu, default=contract)
