"""The forms of a block's M Rᵀ S R x, and what each of them costs.

              of all tokens, c² each                   of matrices, c³ each
    literal   M (Rᵀ (S (R x)))               3         –
    fused     (M Rᵀ) (S (R x))               2         1
    moved     M x + (M Rₛᵀ) (S − I) (Rₛ x)   1 + 8α    4α

S moves the first 4⌊αc⌋ channels and leaves the others, so of S − I only the
rows Rₛ of R that answer to them are left: Rᵀ S R = RᵀR + Rₛᵀ (S − I) Rₛ. With
RᵀR = I that is the last form. A quarter less than 'fused' at α = 1/16, as much
at α = 1/8; and what backward finds of a block is x and 4⌊αc⌋ channels, not 2c.
It also says what R is: its other rows are of no consequence to the function.

'moved' is the same function *on the manifold* alone. Next to it the forms are
apart by at most ‖M‖₂·‖RᵀR − I‖₂·‖x‖, and Λ = ‖M‖₂‖R‖₂² bounds the other two:
certificates are never computed with it (`LipNeXt.explicit`). The gradient of R
has another component normal to the manifold, which no step takes; the clip of a
recipe sees its norm.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from lipnext_jax.models import layers

# 'auto': of the two that are one function for any R, by the static shapes.
FORMS = ('auto', 'fused', 'literal', 'moved')


def choose(form: str, tokens: float, width: int) -> str:
  """'auto' → 'fused' if its products are fewer than those of 'literal'.

  Args:
    form: one of `FORMS`; any but 'auto' is the answer.
    tokens: of one device, N, times the devices that share the forming of M Rᵀ;
      0 if unknown.
    width: c. 2·N·c² + c³ < 3·N·c² where N > c.

  Raises:
    ValueError: no such form.

  >>> choose('auto', tokens=8192, width=512), choose('auto', 64, 128)
  ('fused', 'literal')
  """
  if form not in FORMS:
    raise ValueError(f'{form=} must be one of {FORMS}.')
  if form != 'auto':
    return form
  return 'fused' if tokens > width else 'literal'


def rows_of_r(form: str, shift_ratio: float, width: int) -> int:
  """The first rows of R, which are all that a form reads.

  >>> rows_of_r('moved', 1 / 16, 512), rows_of_r('fused', 1 / 16, 512)
  (128, 512)
  """
  if form != 'moved':
    return width
  return 4 * layers.channel_count(shift_ratio, width)


def mix(
  form: str,
  x: jax.Array,
  r: jax.Array,
  m: jax.Array,
  *,
  grid: tuple[int, int],
  shift_ratio: float,
  padding: str,
  product: Callable[[jax.Array, jax.Array], jax.Array],
  matrix_product: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """M Rᵀ S R x (paper, eq. of §3.1), in one of its forms.

  Args:
    form: one of `FORMS`, any but 'auto'.
    x: [..., c], tokens of whole grids, image by image.
    r: [c, c], or the first rows of it, from `rows_of_r` on.
    m: [c, c], the dtype of `r`.
    grid: (h, w).
    shift_ratio: see `layers.spatial_shift`.
    padding: see `layers.spatial_shift`.
    product: (tokens [..., c], W [d, c]) → [..., d], x Wᵀ.
    matrix_product: the same where both are matrices of a block.

  Returns:
    [..., c].

  >>> import jax.numpy as jnp
  >>> x = jnp.arange(12.0).reshape(3, 4)  # A grid of 3×1, moved up, down, …
  >>> product = layers.token_product
  >>> [mix(form, x, jnp.eye(4), 2 * jnp.eye(4), grid=(3, 1), shift_ratio=1 / 4,
  ...   padding='circular', product=product, matrix_product=product)[:, 0]
  ...   .tolist() for form in ('literal', 'fused', 'moved')]
  [[8.0, 16.0, 0.0], [8.0, 16.0, 0.0], [8.0, 16.0, 0.0]]
  """

  def shift(y, ratio):
    on_grid = y.reshape(-1, *grid, y.shape[-1])
    return layers.spatial_shift(on_grid, ratio, padding).reshape(y.shape)

  if form == 'moved':
    rows = r[: rows_of_r(form, shift_ratio, x.shape[-1])]
    if not rows.size:
      return product(x, m)
    y = product(x, rows)
    difference = checkpoint_name(shift(y, 1 / 4) - y, 'shifted')
    # Its transpose, (M Rₛᵀ)ᵀ: the gradient of a wide matrix is the faster one.
    back = checkpoint_name(matrix_product(rows, m), 'MRt')
    return product(x, m) + product(difference, back.T)
  y = checkpoint_name(shift(product(x, r), shift_ratio), 'shifted')
  if form == 'fused':
    return product(y, checkpoint_name(matrix_product(m, r), 'MRt'))
  return product(product(y, r.T), m)
