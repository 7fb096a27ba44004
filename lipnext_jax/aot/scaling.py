"""Weak scaling on paper: what a step of LipNeXt computes and sends.

For depth L, width C, a mesh of D replicas × F row shards (n = D·F chips,
'tensor' 1), b images per chip of t tokens each, s = F if D·F does not divide L
and D·F if it does (the devices among which whole layers are split), g bytes of
a gathered entry, r bytes of a reduced one. Per chip and step:

    passes      6 · 2 b t C² L          2 products forward, 4 backward (with
                                        remat 'products': none again)
                + 3 · 2 C³ L / F        M Rᵀ and its two gradients
    update      u · 2 C³ · (2 L/s + 1)  u products a matrix; the stem's is all's
    gathers     4 g C² L (F−1)/F        R and P, forward and again
    reductions  2 r C² L (F−1)/F        reduce-scatter of their gradients
                (twice that where the compiler makes it an all-reduce: TPU)
    replicas    4 r C² L/F (D−1)/D      all-reduce of the rows' gradients
                + 2 r C² L/F (D−1)/D    the working copy, if layers are split
                                        over the replicas, too
    swaps       (r + 4) · 2 C² L/(F·D′) (F−1)/F   all-to-all to rows and back;
                D′ = D if s = D·F, else 1

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
  3.75
  """
  layers, c = sizes.depth, sizes.width
  split = layers % (data * fsdp) == 0
  owners = data * fsdp if split else fsdp
  matrix = c * c * layers
  rows, copies = (fsdp - 1) / fsdp, (data - 1) / data
  tokens = sizes.images * sizes.tokens
  local = 2 * matrix / (fsdp * data if split else fsdp)
  return Step(
    passes=12 * tokens * matrix + 6 * c * matrix / fsdp,
    update=sizes.update_products * 2 * c**3 * (2 * layers / owners + 1),
    update_narrow=sizes.update_narrow,
    gathers=4 * sizes.gathered * matrix * rows,
    reductions=2 * sizes.reduced * matrix * rows * (2 if all_reduce else 1),
    replicas=(4 + 2 * split) * sizes.reduced * matrix / fsdp * copies,
    swaps=(sizes.reduced + 4) * local * rows,
  )
