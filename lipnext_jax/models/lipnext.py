"""LipNeXt (paper §3): stem, scanned blocks, pooling or a neck, normalised head.

Token features are rows: a matrix W acts as `y = x @ W.T`. Shapes: `b` batch,
`h w` token grid, `c` channels (width), `l` blocks (depth), `k` channels that
the shift moves, k = 4⌊αc⌋.

Parameters, all float32 (the optimizer chooses a rule by leaf name, see
`lipnext_jax.optim.orthogonal_labels`):

    stem/Q [n, n]       n = max(c, patch²·channels)       orthogonal
    stem/bias [c]
    blocks/R [l, k, c]  (absent if k = 0)                 orthonormal rows
    blocks/M [l, c, c]                                    orthogonal
    blocks/bias [l, c], blocks/pos [l, h, w, 1]
    head/kernel [classes, c], head/bias [classes]

With `pool='neck'` also, and a head of d features:

    neck/Q [d, h·w·c], neck/bias [d]                      orthonormal rows
    dense/Q [m, d, d], dense/bias [m, d]  (absent if m = 0)  orthogonal
"""

import functools
from typing import Any
from typing import ClassVar

import flax.linen as nn
from flax.typing import Dtype
import jax
import jax.numpy as jnp

from lipnext_jax.models import block as block_lib
from lipnext_jax.models import interface
from lipnext_jax.models import layers
from lipnext_jax.models import parametrizations
from lipnext_jax.models import products

# What a block keeps for the backward pass besides its input. 'products' keeps
# (S − I) R y, and mapped R and M, so that no product is computed again.
REMAT_POLICIES = {
  'products': jax.checkpoint_policies.save_only_these_names(
    'difference', 'mapped'
  ),
  'block': jax.checkpoint_policies.nothing_saveable,
}
POOLS = ('l2', 'neck')


class LipNeXt(interface.CertifiedModel):
  """Classifier from images in [0, 1] to logits, 1-Lipschitz up to the head.

  For logits f, unit head rows w and exactly orthogonal matrices,
  |(f_i − f_j)(x) − (f_i − f_j)(y)| <= ‖w_i − w_j‖·‖x − y‖₂, images in [0, 1].
  `lipnext_jax.certify` turns this into radii, for the matrices as stored.

  Attributes:
    num_classes: number of classes.
    depth: l, number of blocks (scanned: compile time does not grow with it).
    width: c, channels.
    patch_size: side of the stem's patches; divides the image side.
    shift_ratio: α, share of the channels that move in each direction.
    beta: β, share of rectified channels.
    padding: 'circular' (norm-preserving) or 'zero'.
    r_init: initialisation of R and of the stem: 'haar' or 'identity'.
    m_init: initialisation of M: 'haar' or 'identity'.
    dtype: compute dtype; parameters, pooling and logits are float32 or wider.
    precision: precision of products; None: the backend's default.
    remat: what the backward pass computes again: 'products' (all but
      products) or 'block' (everything: less memory, a product more).
    unroll: whether to unroll the blocks: longer to compile, 5 to 10 % faster on
      a GPU.
    activation: 'beta_abs' or 'minmax' (which does not read `beta`).
    position: whether p is trained; it starts at 0.
    pool: 'l2' (the paper's: drops signs and places of tokens) or 'neck' (a
      dense layer on all tokens of an image; for small grids).
    neck_width: d, features of the neck and its dense layers.
    neck_depth: m, dense layers after the neck.
    parametrization: 'none' (R, M, Q are optimised on the manifold) or one of
      `parametrizations.PARAMETRIZATIONS`, which maps `R_raw`, … in every pass.
    devices: communication of the blocks on a mesh; by default, the compiler's.

  >>> model = LipNeXt(num_classes=10, depth=2, width=16, patch_size=4)
  >>> images = jnp.full((3, 8, 8, 1), 0.25)
  >>> variables = model.init(jax.random.key(0), images)
  >>> model.apply(variables, images).shape
  (3, 10)
  """

  EXPLICIT: ClassVar[dict[str, Any]] = {'parametrization': 'none'}

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
  remat: str = 'products'
  unroll: bool = False
  activation: str = 'beta_abs'
  position: bool = True
  pool: str = 'l2'
  neck_width: int = 256
  neck_depth: int = 0
  parametrization: str = 'none'
  devices: block_lib.Devices = block_lib.ONE_DEVICE

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps images [b, H, W, ch], in [0, 1] or uint8, to logits [b, classes]."""
    if self.pool not in POOLS:
      raise ValueError(f'pool={self.pool!r} must be one of {POOLS}.')
    numerics = products.Numerics(self.dtype, self.precision)
    x = layers.patchify(layers.centre(images), self.patch_size)
    b, h, w, values = x.shape
    kind = self.parametrization
    stem = block_lib.Dense(
      self.width, self.r_init, kind, numerics, square=True, name='stem'
    )
    u, _ = stem(x.astype(self.dtype).reshape(-1, values), None)

    spec = block_lib.BlockSpec(
      grid=(h, w),
      shift_ratio=self.shift_ratio,
      padding=self.padding,
      activation=self.activation,
      beta=self.beta,
      position=self.position,
      r_init=self.r_init,
      m_init=self.m_init,
      parametrization=kind,
      numerics=numerics,
    )
    block = nn.remat(
      block_lib.Block,
      policy=REMAT_POLICIES[self.remat],
      prevent_cse=self.unroll,  # It is needless inside a loop.
    )
    blocks = _stack(block, self.depth, self.depth if self.unroll else 1)
    u = self.devices.constrain(u)
    v, _ = blocks(spec, self.devices, name='blocks')(u, None)

    activate = functools.partial(
      layers.activate, activation=self.activation, beta=self.beta
    )
    z = activate(v).reshape(b, h, w, self.width)
    wide = jnp.promote_types(z.dtype, jnp.float32)
    if self.pool == 'l2':
      # Sums of squares in bf16 would cost two digits of every logit.
      z = layers.l2_pool(z.astype(wide))
    else:
      d, neck_kind = self.neck_width, self._parametrization_of('neck')
      neck = block_lib.Dense(
        d, 'haar', neck_kind, numerics, activate=activate, name='neck'
      )
      z, _ = neck(z.reshape(b, -1), None)
      if self.neck_depth:
        dense = _stack(block_lib.Dense, self.neck_depth)(
          d, self.m_init, kind, numerics, activate=activate, name='dense'
        )
        z, _ = dense(z, None)
      z = z.astype(wide)
    return interface.NormalizedHead(self.num_classes, name='head')(z)

  def _parametrization_of(self, group: str) -> str:
    """Returns how a group's matrices are mapped: a neck's, by Cholesky's map.

    The others would need a raw matrix of side h·w·c.
    """
    mapped = self.parametrization != 'none'
    return 'cholesky' if mapped and group == 'neck' else self.parametrization

  def map_raw(self, group: str, name: str, raw: jax.Array, _: Any) -> jax.Array:
    """Computes R, M or Q from its raw matrix."""
    kind = self._parametrization_of(group)
    w = parametrizations.PARAMETRIZATIONS[kind].to_orthogonal(raw)
    k = layers.moved_count(self.shift_ratio, self.width)
    return w[..., :k, :] if name == 'R' else w


def _stack(layer: Any, depth: int, unroll: int = 1) -> Any:
  """Makes a scan over layers with parameters of their own."""
  return nn.scan(
    layer,
    # 'intermediates' exists only when `runtime.diagnosis` captures it.
    variable_axes={'params': 0, 'intermediates': 0},
    split_rngs={'params': True},
    length=depth,
    unroll=unroll,
  )


def paper_parameter_count(params: Any) -> int:
  """Counts R and M as the paper does, with R whole: 2·c² a block; 0 without M.

  >>> shape = jax.ShapeDtypeStruct((32, 4096, 4096), jnp.float32)
  >>> paper_parameter_count({'blocks': {'M': shape}}) == 1024 * 2**20
  True
  """
  blocks = params.get('blocks', {})
  m = blocks.get('M', blocks.get('M' + parametrizations.RAW))
  return 0 if m is None else 2 * m.shape[0] * m.shape[1] ** 2
