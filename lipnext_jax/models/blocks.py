"""What LipNeXt is made of (paper §3): the stem, and the block it repeats.

    Z = σ( M Rᵀ S( R (X + p) ) + b )           one block, paper eq. of §3.1

Shapes: `b` batch, `h w` token grid, `c` channels (width), `n` the stem's side.
"""

import functools

import flax.linen as nn
from flax.typing import Dtype
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lipnext_jax.models import forms
from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models import sharded


class Stem(nn.Module):
  """Patches → zero-padded to n → one orthogonal [n, n] matrix → c channels.

  Isometric when patch²·channels <= c; otherwise the cut to c outputs makes it
  1-Lipschitz. Then the bias; the β-Abs is the first block's to apply.
  """

  width: int
  patch_size: int
  dtype: Dtype
  precision: jax.lax.PrecisionLike
  r_init: str
  parametrization: str
  layout: sharded.Layout | None = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, H, W, ch] → [b, h, w, c]."""
    x = layers.patchify(images, self.patch_size).astype(self.dtype)
    values = x.shape[-1]
    n = max(self.width, values)
    q = parametrizations.orthogonal_param(
      self, 'Q', n, self.r_init, self.parametrization
    )
    bias = self.param('bias', nn.initializers.zeros, (self.width,), jnp.float32)
    # Zero-padding x to n and cutting y to c touches only this corner of Q.
    corner = q[: self.width, :values]
    if self.layout is not None:
      y = sharded.token_product(x, corner, self.precision)
    else:
      y = layers.token_product(x, corner.astype(self.dtype), self.precision)
    return y + layers.per_channel(bias, y)


class Block(nn.Module):
  """One LipNeXt block, as a scan body: (u, None) → (v, None).

  What is handed on is what β-Abs is applied to, not its result:

      X = σ(u),   v = M Rᵀ S( R (X + p) ) + b,   Z = σ(v)

  Backward needs the sign that σ removes, and the inputs of both products. With
  u and S(R(X + p)) it has all three: two tensors a block, not three. (Of the
  form 'moved' the second is narrower: `forms`.)

  Both lie as [tokens, c] between the blocks: with more axes the compiler is
  free to lay them out otherwise for the weight gradients, and copies them all.
  """

  grid: tuple[int, int]
  shift_ratio: float
  beta: float
  padding: str
  dtype: Dtype
  precision: jax.lax.PrecisionLike
  r_init: str
  m_init: str
  form: str
  activation: str
  position: bool
  parametrization: str
  layout: sharded.Layout | None = None

  @nn.compact
  def __call__(self, u: jax.Array, _: None) -> tuple[jax.Array, None]:
    """v = M Rᵀ S( R (σ(u) + p) ) + b, u and v: [b·h·w, c]."""
    (h, w), c = self.grid, u.shape[-1]
    as_grid = (-1, h, w, c)
    r_rows = forms.rows_of_r(self.form, self.shift_ratio, c)
    r32, m32 = (
      parametrizations.orthogonal_param(
        self, name, c, init, self.parametrization, rows
      )
      for name, init, rows in (
        ('R', self.r_init, r_rows),
        ('M', self.m_init, c),
      )
    )
    if self.parametrization != 'none':
      r32, m32 = (checkpoint_name(w, 'mapped') for w in (r32, m32))
    bias = self.param('bias', nn.initializers.zeros, (c,), jnp.float32)
    pos = self.param('pos', nn.initializers.zeros, (h, w, 1), jnp.float32)
    if not self.position:  # Stays at its start, zero.
      pos = jax.lax.stop_gradient(pos)
    if self.layout is not None:
      v = sharded.block(
        self.layout,
        u.reshape(as_grid),
        r32,
        m32,
        bias,
        pos,
        shift_ratio=self.shift_ratio,
        activation=self.activation,
        beta=self.beta,
        padding=self.padding,
        dtype=self.dtype,
        precision=self.precision,
        form=self.form,
      )
      return v.reshape(u.shape), None
    r, m = r32.astype(self.dtype), m32.astype(self.dtype)

    x = layers.activate(u, self.activation, self.beta)
    x = x.reshape(as_grid) + jnp.expand_dims(pos, 0).astype(self.dtype)
    product = functools.partial(layers.token_product, precision=self.precision)
    y = forms.mix(
      self.form,
      x.reshape(u.shape),
      r,
      m,
      grid=self.grid,
      shift_ratio=self.shift_ratio,
      padding=self.padding,
      product=product,
      matrix_product=product,
    )
    return y + layers.per_channel(bias, y), None
