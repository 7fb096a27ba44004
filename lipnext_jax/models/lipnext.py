"""LipNeXt (paper §3): stem, scanned blocks, L2 pooling, normalised head.

    Z = σ( M Rᵀ S( R (X + p) ) + b )           one block, paper eq. of §3.1

Token features are rows: a matrix W acts as `y = x @ W.T`. Shapes: `b` batch,
`h w` token grid, `c` channels (width), `k` classes, `l` blocks (depth).

Parameters (all float32; leaf names decide who updates them, see
`lipnext_jax.optim.orthogonal_labels`):

    stem/Q [n, n]       n = max(c, patch²·channels)       orthogonal
    stem/bias [c]
    blocks/R [l, c, c], blocks/M [l, c, c]                orthogonal
    blocks/bias [l, c], blocks/pos [l, h, w, 1]
    head/kernel [k, c], head/bias [k]
"""

import math
from typing import Any

import flax.linen as nn
from flax.typing import Dtype
from flax.typing import VariableDict
import jax
import jax.numpy as jnp

from lipnext_jax.models import blocks
from lipnext_jax.models import forms
from lipnext_jax.models import head
from lipnext_jax.models import initializers
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models import sharded

# What backward finds of a block besides its input. 'products' saves what S made
# and the matrix M Rᵀ (and R and M where they are mapped): no product is
# computed again.
REMAT_POLICIES = {
  'none': None,
  'block': jax.checkpoint_policies.nothing_saveable,
  'products': jax.checkpoint_policies.save_only_these_names(
    'shifted', 'MRt', 'mapped'
  ),
}


class LipNeXt(interface.CertifiedModel):
  """The classifier: images in [0, 1] → logits, 1-Lipschitz up to the head.

  With f the logits, W the unit-norm head rows and orthogonal matrices that
  are exactly so, |(f_i − f_j)(x) − (f_i − f_j)(y)| <= ‖w_i − w_j‖·‖x − y‖₂ for
  images in [0, 1] pixel units. `lipnext_jax.certify` turns that into radii
  and bounds what "exactly" misses.

  Attributes:
    num_classes: k.
    depth: l, number of blocks (scanned: compile time does not grow with it).
    width: c, channels.
    patch_size: side of the stem's patches; divides the image side.
    shift_ratio: α of the spatial shift, per direction.
    beta: share of rectified channels.
    padding: 'circular' (norm-preserving) or 'zero'.
    r_init: initialisation of R and of the stem: 'haar' or 'identity'.
    m_init: initialisation of M: 'haar' or 'identity'.
    dtype: compute dtype; parameters, pooling and logits are float32 or wider.
    precision: of every product (None: the backend's default).
    remat: 'none', 'block' (recompute blocks in backward) or 'products'
      (recompute what costs no product; less memory than 'none', and faster).
    form: of M Rᵀ S R, one of `forms.FORMS`. 'auto': M Rᵀ as one matrix where a
      device's tokens exceed c. 'moved' is for training; Λ does not cover it.
    unroll: the blocks one after the other instead of in a loop. A loop keeps
      compile time the same at any depth; its stacks of saved tensors are
      copies, 5 to 10 % of a step on a GPU.
    data_shards: devices that the batch is split over; only tells `form` how
      many tokens one device has.
    activation: 'beta_abs' or 'minmax' (which `beta` does not concern).
    position: False: p is never trained away from zero.
    parametrization: 'none' (R, M, Q are stored, and optimised on the manifold)
      or one of `parametrizations.PARAMETRIZATIONS`, which map raw leaves
      `R_raw`, … in every pass. `explicit_params` maps them once and for all.
    layout: how the blocks lie on a mesh, to move matrices and sum gradients
      by hand; None: as the compiler sees fit.

  >>> model = LipNeXt(num_classes=10, depth=2, width=16, patch_size=4)
  >>> images = jnp.full((3, 8, 8, 1), 0.25)
  >>> variables = model.init(jax.random.key(0), images)
  >>> model.apply(variables, images).shape
  (3, 10)
  """

  num_classes: int
  depth: int
  width: int
  patch_size: int
  shift_ratio: float = 1 / 8
  beta: float = 0.5
  padding: str = 'circular'
  r_init: str = 'haar'
  m_init: str = 'identity'
  dtype: Dtype = jnp.float32
  precision: jax.lax.PrecisionLike = None
  remat: str = 'none'
  form: str = 'auto'
  unroll: bool = False
  data_shards: int = 1
  activation: str = 'beta_abs'
  position: bool = True
  parametrization: str = 'none'
  layout: sharded.Layout | None = None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[b, H, W, ch] in [0, 1] → logits [b, k], float32 (or wider)."""
    for name, value, choices in (
      ('remat', self.remat, REMAT_POLICIES),
      ('r_init', self.r_init, initializers.ORTHOGONAL),
      ('m_init', self.m_init, initializers.ORTHOGONAL),
    ):
      if value not in choices:
        raise ValueError(f'{name}={value!r} must be one of {sorted(choices)}.')
    # Re-centred, never divided by a deviation: that would rescale ε.
    u = blocks.Stem(
      width=self.width,
      patch_size=self.patch_size,
      dtype=self.dtype,
      precision=self.precision,
      r_init=self.r_init,
      parametrization=self.parametrization,
      layout=self.layout,
      name='stem',
    )(images - 0.5)

    b, h, w, _ = u.shape
    # Devices that share the rows of M Rᵀ share the work of forming it.
    sharers = 1 if self.layout is None else self.layout.row_shards
    # A batch of open size (`jax.export`) decides nothing.
    tokens = b * h * w if isinstance(b, int) else 0
    form = forms.choose(
      self.form, tokens * sharers / self.data_shards, self.width
    )

    policy = REMAT_POLICIES[self.remat]
    if self.layout is not None:
      u = sharded.constrain(self.layout, u)
      policy = policy or sharded.keep_all_but_gathers
    block: Any = blocks.Block
    if policy is not None:  # prevent_cse is needless inside a loop.
      block = nn.remat(blocks.Block, policy=policy, prevent_cse=self.unroll)
    scanned = nn.scan(
      block,
      # The latter only exists where someone asks for it: `diagnosis`.
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=self.depth,
      unroll=self.depth if self.unroll else 1,
    )
    v, _ = scanned(
      grid=(h, w),
      shift_ratio=self.shift_ratio,
      beta=self.beta,
      padding=self.padding,
      dtype=self.dtype,
      precision=self.precision,
      r_init=self.r_init,
      m_init=self.m_init,
      form=form,
      activation=self.activation,
      position=self.position,
      parametrization=self.parametrization,
      layout=self.layout,
      name='blocks',
    )(u.reshape(-1, self.width), None)
    x = layers.activate(v, self.activation, self.beta).reshape(u.shape)

    # bf16 sums of squares would cost two digits of every logit.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    pooled = layers.l2_pool(x.astype(wide))
    return head.NormalizedHead(self.num_classes, name='head')(pooled)

  def working_params(self, params: Any) -> Any:
    """See `interface`: of R, the rows that the form 'moved' reads."""
    rows = forms.rows_of_r(self.form, self.shift_ratio, self.width)
    if rows == self.width or self.parametrization != 'none':
      return params
    # Devices share rows evenly; one at least, for none could not be laid out.
    shares = 1 if self.layout is None else self.layout.row_shards
    rows = shares * max(1, math.ceil(rows / shares))
    read = {**params['blocks'], 'R': params['blocks']['R'][:, :rows]}
    return {**params, 'blocks': read}

  def explicit(self, dtype: Dtype = jnp.float32) -> 'LipNeXt':
    """See `interface`: R, M, Q stored themselves; in a form that Λ covers."""
    return self.clone(
      dtype=dtype,
      precision=jax.lax.Precision.HIGHEST,
      remat='none',
      parametrization='none',
      form='auto' if self.form == 'moved' else self.form,
    )

  def explicit_params(self, params: Any) -> Any:
    """See `interface`: matrices for their raw leaves."""
    if self.parametrization == 'none':
      return params
    p = parametrizations.PARAMETRIZATIONS[self.parametrization]
    return parametrizations.map_raw(
      params, dict.fromkeys(('Q', 'R', 'M'), p.to_orthogonal)
    )


def lipschitz_multiplicity(path: str) -> int:
  """How often a forward pass applies the orthogonal leaf at `path`.

  A block is M Rᵀ S R: its Lipschitz constant is bounded by ‖M‖₂·‖R‖₂², so R
  counts twice. (Paper §3.1; exact orthogonality makes the distinction vanish,
  a measured bound must keep it.)

  >>> lipschitz_multiplicity('params/blocks/R')
  2
  >>> lipschitz_multiplicity('params/blocks/M')
  1
  """
  return 2 if path.rsplit('/', maxsplit=1)[-1] == 'R' else 1


def num_orthogonal_parameters(variables: VariableDict) -> int:
  """Entries of R and M: the paper's parameter count, l·2·c².

  >>> model = LipNeXt(num_classes=2, depth=3, width=8, patch_size=2)
  >>> shapes = jax.eval_shape(
  ...   model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  >>> num_orthogonal_parameters(shapes)
  384
  """
  stacks = variables['params']['blocks']
  return stacks['R'].size + stacks['M'].size
