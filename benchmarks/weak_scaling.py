"""Predicted step time and efficiency from 16 to 1024 chips, a fixed batch each.

    python -m benchmarks.weak_scaling --chip=v5p

From the formulae below at data sheet rates: nothing is measured. Efficiency is
the time of 16 chips over that of n, once with all communication hidden behind
computation and once with none of it. Within a slice of TPUs everything goes
over the links; GPUs put the replicas over the network, eight rows to a host.

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

import argparse
from typing import NamedTuple

from lipnext_jax.aot import chips

MODELS = {'1b': (32, 4096), '2b': (32, 5792), '8b': (64, 8192)}
COUNTS = (16, 32, 64, 128, 256, 512, 1024)
TOKENS = 256  # 16×16, all ImageNet configs.


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


def mesh_of(kind: str, count: int, depth: int) -> tuple[int, int]:
  """(data, fsdp) for so many chips.

  >>> mesh_of('v5p', 64, 32), mesh_of('h100', 64, 32)
  ((2, 32), (8, 8))
  """
  rows = 8 if chips.CHIPS[kind].platform == 'cuda' else min(count, depth)
  return count // rows, rows


def main() -> None:
  """Prints the table as Markdown."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--chip', choices=sorted(chips.CHIPS), default='v5p')
  parser.add_argument('--model', choices=sorted(MODELS), default='2b')
  parser.add_argument('--images', type=int, default=64, help='per chip')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument(
    '--update_products',
    type=float,
    default=4.0,
    help='of C³ per matrix and step: 4 for steps below 1, more beyond',
  )
  parser.add_argument(
    '--highest',
    action='store_true',
    help="the update's products in float32, not in bfloat16 as the recipe's",
  )
  args = parser.parse_args()
  chip = chips.CHIPS[args.chip]
  depth, width = MODELS[args.model]
  sizes = Sizes(
    depth,
    width,
    TOKENS,
    args.images,
    update_products=args.update_products,
    update_narrow=not args.highest,
    shift_ratio=args.shift_ratio,
  )
  print(
    f'{args.model} on {args.chip}, {args.images} images per chip\n\n'
    '| chips | data × fsdp | passes, ms | update, ms | gathers, ms | '
    'reductions, ms | replicas, ms | swaps, ms | step, ms | images/s | '
    'efficiency |\n|---|---|---|---|---|---|---|---|---|---|---|'
  )
  base: tuple[float, float] | None = None
  for count in COUNTS:
    data, fsdp = mesh_of(args.chip, count, depth)
    gpu = chip.platform == 'cuda'
    step = predict(sizes, data, fsdp, all_reduce=not gpu)
    far = chip.network if gpu else chip.links
    compute, network = step.seconds(chip, replicas_over_network=gpu)
    low, high = max(compute, network), compute + network
    base = base or (low, high)
    parts = (
      step.passes / chip.compute,
      step.update_seconds(chip),
      step.gathers / chip.links,
      step.reductions / chip.links,
      step.replicas / far,
      step.swaps / chip.links,
    )
    cells = ' | '.join(f'{1e3 * part:.1f}' for part in parts)
    rate = (
      f'{count * args.images / high:,.0f} … {count * args.images / low:,.0f}'
    )
    ratios = sorted((base[0] / low, base[1] / high))
    print(
      f'| {count} | {data} × {fsdp} | {cells} | '
      f'{1e3 * low:.0f} … {1e3 * high:.0f} | {rate} | '
      f'{ratios[0]:.2f} … {ratios[1]:.2f} |'
    )


if __name__ == '__main__':
  main()
