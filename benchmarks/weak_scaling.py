"""Predicted step time and efficiency from 16 to 1024 chips, a fixed batch each.

    python -m benchmarks.weak_scaling --chip=v5p

From the formulae of `lipnext_jax.aot.scaling` at data sheet rates: nothing is
measured. Efficiency is the time of 16 chips over that of n, once with all
communication hidden behind computation and once with none of it. Within a slice
of TPUs everything goes over the links; GPUs put the replicas over the network,
eight rows to a host.
"""

import argparse

from lipnext_jax.aot import chips
from lipnext_jax.aot import scaling

MODELS = {'1b': (32, 4096), '2b': (32, 5792), '8b': (64, 8192)}
COUNTS = (16, 32, 64, 128, 256, 512, 1024)
TOKENS = 256  # 16×16, all ImageNet configs.


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
  sizes = scaling.Sizes(
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
    step = scaling.predict(sizes, data, fsdp, all_reduce=not gpu)
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
