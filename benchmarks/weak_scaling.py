"""Predicts step time and efficiency of 2B on 16 to 1024 chips, 64 images each.

    python -m benchmarks.weak_scaling --chip=v5p

Uses the formulae below at data sheet rates; nothing is measured. Efficiency is
the time on 16 chips over that on n, once with all communication hidden behind
computation and once with none. Within a slice of TPUs all data go over the
links; on GPUs the replicas use the network, with eight row shards to a host.

For depth L, width C, a mesh of D replicas × F row shards (n = D·F chips,
'tensor' 1), b images per chip of t tokens each, s the number of devices among
which whole layers are split (D·F if that divides L, else F), g bytes of a
gathered entry, r bytes of a reduced one, and m = 4α the share of channels that
move, R and M have N = (1 + m) C² L entries. Per chip and step:

    passes      3 · 2 b t (1 + 2m) C² L    forward, and twice in backward (remat
                                           'products' repeats none)
                + 2 · 2 m C³ L             B R and Bᵀ M, of matrices alone
    update      u · 2 C³ · (L/s + 1)       u products for M; every chip updates
                                           the stem's matrix
                + (u − 2 + 2m) · 2 C³ L/s  two of R's have m C rows
    gathers     2 g N (F−1)/F              R and M, forward and again
    reductions  r N (F−1)/F                reduce-scatter of their gradients
                (twice that where the compiler makes it an all-reduce: TPU)
    replicas    2 r N/F (D−1)/D            all-reduce of these gradients
                + r N/F (D−1)/D            the working copy, if s = D·F
    swaps       (r + 4) N/s (F−1)/F        all-to-all to a step's layout and
                                           back

Stem, head, biases and positions are left out, below 1 % of the whole.
"""

import argparse
from typing import NamedTuple

from benchmarks import timing
from lipnext_jax.aot import chips

DEPTH, WIDTH = 32, 5792  # 2B.
IMAGES = 64  # Per chip.
COUNTS = (16, 32, 64, 128, 256, 512, 1024)
TOKENS = 256  # 16×16, all ImageNet configs.


class Sizes(NamedTuple):
  """Sizes of a model and its batch."""

  depth: int
  width: int
  tokens: int  # Per image.
  images: int  # Per chip.
  gathered: int = 2  # Bytes of an entry that is gathered: bfloat16.
  reduced: int = 4  # Bytes of an entry that is summed: float32.
  update_products: float = 4.0  # u: products of C³ per matrix and step.
  shift_ratio: float = 1 / 8  # α.


class Step(NamedTuple):
  """Operations of a chip in a step, and bytes that it sends."""

  passes: float  # FLOP.
  update: float  # FLOP.
  gathers: float  # Bytes, as all below.
  reductions: float
  replicas: float
  swaps: float


def predict(
  sizes: Sizes, data: int, fsdp: int, all_reduce: bool = False
) -> Step:
  """Evaluates the formulae of the module's docstring.

  Args:
    sizes: sizes of model and batch.
    data: number D of replicas.
    fsdp: number F of row shards.
    all_reduce: whether the compiler makes reduce-scatters all-reduces.

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
    gathers=2 * sizes.gathered * entries * others,
    reductions=sizes.reduced * entries * others * (2 if all_reduce else 1),
    replicas=(2 + split) * sizes.reduced * entries / fsdp * copies,
    swaps=(sizes.reduced + 4) * entries / owners * others,
  )


def main() -> None:
  """Parses the command line and prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--chip', choices=sorted(chips.CHIPS), default='v5p')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument(
    '--highest', action='store_true', help="the update's products in float32"
  )
  args = parser.parse_args()
  chip = chips.CHIPS[args.chip]
  gpu = chip.platform == 'cuda'
  # Units of a chip per second, in the order of `Step`'s fields.
  rates = Step(
    passes=chip.compute,
    update=chip.float32 if args.highest else chip.compute,
    gathers=chip.links,
    reductions=chip.links,
    replicas=chip.network if gpu else chip.links,
    swaps=chip.links,
  )
  sizes = Sizes(DEPTH, WIDTH, TOKENS, IMAGES, shift_ratio=args.shift_ratio)
  rows = []
  base: tuple[float, float] | None = None
  for count in COUNTS:
    # Eight row shards to a host of GPUs.
    fsdp = 8 if gpu else min(count, DEPTH)
    step = predict(sizes, count // fsdp, fsdp, all_reduce=not gpu)
    seconds = [amount / rate for amount, rate in zip(step, rates, strict=True)]
    compute, network = sum(seconds[:2]), sum(seconds[2:])
    low, high = max(compute, network), compute + network
    base = base or (low, high)
    ratios = sorted((base[0] / low, base[1] / high))
    rows.append(
      (
        count,
        f'{count // fsdp} × {fsdp}',
        *(f'{1e3 * part:.1f}' for part in seconds),
        f'{1e3 * low:.0f} … {1e3 * high:.0f}',
        f'{count * IMAGES / high:,.0f} … {count * IMAGES / low:,.0f}',
        f'{ratios[0]:.2f} … {ratios[1]:.2f}',
      )
    )
  timing.table(
    (
      'chips',
      'data × fsdp',
      *(f'{part}, ms' for part in Step._fields),
      'step, ms',
      'images/s',
      'efficiency',
    ),
    rows,
    f'2B on {args.chip}, {IMAGES} images per chip\n',
  )


if __name__ == '__main__':
  main()
