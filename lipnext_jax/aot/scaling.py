"""Weak scaling on paper: what a step of LipNeXt computes and sends.

For depth L, width C, a mesh of D replicas × F row shards (n = D·F chips,
'tensor' 1), b images per chip of t tokens each, s = F if D·F does not divide L
and D·F if it does (the devices among which whole layers are split), g bytes of
a gathered entry, r bytes of a reduced one, and m = 4α for the share of channels
that move: R and M have N = (1 + m) C² L entries. Per chip and step:

    passes      3 · 2 b t (1 + 2m) C² L    forward, and twice in backward (with
                                           remat 'products': none again)
                + 2 · 2 m C³ L             B R and Bᵀ M, of matrices alone
    update      u · 2 C³ · (L/s + 1)       u products for M; the stem's is all's
                + (u − 2 + 2m) · 2 C³ L/s  two of R's have m C rows
    gathers     2 g N (F−1)/F              R and M, forward and again
    reductions  r N (F−1)/F                reduce-scatter of their gradients
                (twice that where the compiler makes it an all-reduce: TPU)
    replicas    2 r N/F (D−1)/D            all-reduce of these gradients
                + r N/F (D−1)/D            the working copy, if layers are split
                                           over the replicas, too
    swaps       (r + 4) N/(F·D′) (F−1)/F   all-to-all to a step's layout and
                                           back; D′ = D if s = D·F, else 1

Stem, head, biases and positions are left out: below 1 % of all of it.
"""

from typing import NamedTuple

from lipnext_jax.aot import chips


class Sizes(NamedTuple):
  """Of a model and its batch."""

  depth: int
  width: int
  tokens: int  # Per image.
  images: int  # Per chip.
  gathered: int = 2  # Bytes of an entry that is gathered: bfloat16.
  reduced: int = 4  # Bytes of an entry that is summed: float32.
  update_products: float = 4.0  # u: products of C³ per matrix and step.
  update_narrow: bool = True  # In bfloat16, as the ImageNet recipe has it.
  shift_ratio: float = 1 / 8  # α.


class Step(NamedTuple):
  """Of one chip; bytes are those it sends."""

  passes: float  # FLOP.
  update: float  # FLOP.
  update_narrow: bool  # In bfloat16, not in float32 at the highest precision.
  gathers: float
  reductions: float
  replicas: float
  swaps: float

  def update_seconds(self, chip: chips.Chip) -> float:
    """At the rate of the data sheet for the precision of its products."""
    return self.update / (chip.compute if self.update_narrow else chip.float32)

  def seconds(
    self, chip: chips.Chip, replicas_over_network: bool = False
  ) -> tuple[float, float]:
    """(computing, sending) at the rates of the data sheet."""
    compute = self.passes / chip.compute + self.update_seconds(chip)
    far = chip.network if replicas_over_network else chip.links
    near = self.gathers + self.reductions + self.swaps
    return compute, near / chip.links + self.replicas / far


def predict(
  sizes: Sizes, data: int, fsdp: int, all_reduce: bool = False
) -> Step:
  """The formulae above.

  Args:
    sizes: of model and batch.
    data: D.
    fsdp: F.
    all_reduce: whether reduce-scatters are made all-reduces.

  >>> predict(Sizes(32, 4096, 256, 64), data=1, fsdp=16).gathers / 2**30
  2.8125
  """
  layers, c = sizes.depth, sizes.width
  split = layers % (data * fsdp) == 0
  owners = data * fsdp if split else fsdp
  moved, products = 4 * sizes.shift_ratio, sizes.update_products
  entries = (1 + moved) * c * c * layers
  others, copies = (fsdp - 1) / fsdp, (data - 1) / data
  tokens = sizes.images * sizes.tokens
  stacks = (2 * products - 2 + 2 * moved) * layers / owners
  return Step(
    passes=c * c * layers * (6 * tokens * (1 + 2 * moved) + 4 * moved * c),
    update=2 * c**3 * (stacks + products),
    update_narrow=sizes.update_narrow,
    gathers=2 * sizes.gathered * entries * others,
    reductions=sizes.reduced * entries * others * (2 if all_reduce else 1),
    replicas=(2 + split) * sizes.reduced * entries / fsdp * copies,
    swaps=(sizes.reduced + 4) * entries / owners * others,
  )
