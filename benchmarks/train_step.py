"""Times the parts of a train step, and compares with the speed of products.

    python -m benchmarks.train_step --size L8W512 --batch_size 32 \
      --rivals literal torch
    python -m benchmarks.train_step --size 1B --batch_size 768 --unroll \
      --dtype bfloat16 --optimizer_precision bfloat16

Prints medians of forward, forward with backward, optimizer, data and the whole
step, images/s, the share of the ceiling, peak memory and compile time.

The ceiling is the speed of the fastest form (forward, by the weight, by the
input) of one token product at the same shapes and dtype. It is measured before
and after the candidates, and the better value counts. A step's share of it
counts the products that a block needs, (1 + 8α) c² a token, three times for
forward and backward, whatever a candidate computes. The rival 'torch' needs
PyTorch. RESULTS.md has recorded runs.
"""

import argparse
import functools
import glob
import os
import statistics

import flax
import jax
from jax import lax
import jax.numpy as jnp
import optax

from benchmarks import timing
from benchmarks import train_step_candidates as candidates_lib

STEPS = 4  # Steps in a row per sample of the step's time.
UPDATES = 4  # Samples of the optimizer's short time per sample of another part.


def ceiling(shape: candidates_lib.Shape, repeats) -> float:
  """Returns the FLOP/s of the fastest form of one token product."""
  keys = jax.random.split(jax.random.key(1), 3)
  x, g = (
    jax.random.normal(k, (shape.tokens, shape.width), shape.dtype)
    for k in keys[:2]
  )
  w = jax.random.normal(keys[2], (shape.width, shape.width), shape.dtype)

  def product(i, j):
    def fn(x, y):
      return lax.dot_general(x, y, (((i,), (j,)), ((), ())))

    return jax.jit(fn)

  ways = (
    functools.partial(product(1, 1), x, w),
    functools.partial(product(1, 0), x, w),
    functools.partial(product(0, 0), g, x),
  )
  one = 2 * shape.tokens * shape.width**2
  # Many in a row, since one may take less time than its dispatch.
  count = max(1, min(50, int(2e13 / one)) if _on_gpu() else 1)
  times = timing.medians(
    [lambda f=f: [f() for _ in range(count)][-1] for f in ways], repeats
  )
  rates = [one * count / took for took in times]
  names = ('x Wᵀ', 'g W', 'gᵀ x')
  print(
    'matmul ceiling: '
    + ', '.join(
      f'{n} {r / 1e12:.3f}' for n, r in zip(names, rates, strict=True)
    )
    + f' TFLOP/s ({shape.tokens}×{shape.width}×{shape.width}, '
    f'{jnp.dtype(shape.dtype).name})'
  )
  return max(rates)


def _on_gpu():
  return jax.default_backend() == 'gpu'


def profile(candidate, folder, rows=60):
  """Traces a few steps and prints the time of every kernel."""
  with jax.profiler.trace(folder):
    jax.block_until_ready(candidate.steps(STEPS))
  paths = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
  spent: dict[str, list[float]] = {}
  data = jax.profiler.ProfileData.from_file(max(paths))
  for plane in data.planes:
    if not plane.name.startswith('/device:'):
      continue
    for line in plane.lines:
      if not line.name.startswith('Stream'):
        continue
      for event in line.events:
        spent.setdefault(event.name, []).append(event.duration_ns / 1e6)
  total = sum(map(sum, spent.values()))
  print(f'kernels of {STEPS} steps: {total:.0f} ms')
  ranked = sorted(spent.items(), key=lambda item: -sum(item[1]))[:rows]
  timing.table(
    ('kernel', 'calls', 'ms', 'share'),
    [
      (name[:70], len(ms), f'{sum(ms):.1f}', f'{100 * sum(ms) / total:.1f} %')
      for name, ms in ranked
    ],
  )


def measure(shape: candidates_lib.Shape, candidates, repeats):
  """Times every part of every candidate; returns rows {title: cell}."""
  before = ceiling(shape, repeats)
  parts = {
    part: timing.medians([getattr(c, part) for c in candidates], repeats)
    for part in ('forward', 'backward', 'data')
  }
  several = [functools.partial(c.steps, STEPS) for c in candidates]
  parts['step'] = [took / STEPS for took in timing.medians(several, repeats)]
  updates = UPDATES * repeats
  parts['optimizer'] = [
    statistics.median([c.optimizer() for _ in range(updates + 1)][1:])
    for c in candidates
  ]
  least = shape.flops / max(before, ceiling(shape, repeats))
  rows = []
  for i, c in enumerate(candidates):
    took = {part: times[i] for part, times in parts.items()}
    state, peak = c.state_bytes(), c.peak_bytes()
    ms = {part: f'{1e3 * t:.1f}' for part, t in took.items()}
    share = f'{100 * took["optimizer"] / took["step"]:.0f} %'
    rows.append(
      {
        '': c.name,
        'parameters': f'{c.parameters() / 2**20:.1f}·2²⁰',
        'forward': ms['forward'],
        'forward + backward': ms['backward'],
        'of ceiling': f'{100 * least / took["backward"]:.0f} %',
        'optimizer': f'{ms["optimizer"]} ({share})',
        'data': ms['data'],
        'step': ms['step'],
        'images/s': f'{shape.batch / took["step"]:.1f}',
        'step of ceiling': f'{100 * least / took["step"]:.0f} %',
        'peak GiB': f'{peak / 2**30:.2f}',
        '/ (state + saved)': f'{peak / (state + shape.saved):.2f}',
        'compile s': f'{c.compile_seconds:.1f}',
      }
    )
  return rows


def main() -> None:
  """Parses the command line, measures, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--size', choices=list(candidates_lib.SIZES), required=True
  )
  parser.add_argument('--batch_size', type=int, required=True)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument('--remat', default='products')
  parser.add_argument('--unroll', action='store_true', help='no loop')
  parser.add_argument(
    '--optimizer_precision',
    choices=list(candidates_lib.PRECISIONS),
    default='highest',
  )
  parser.add_argument(
    '--rivals', nargs='*', choices=list(candidates_lib.RIVALS), default=[]
  )
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--profile', help='trace one step into this folder')
  args = parser.parse_args()

  shape = candidates_lib.Shape(
    *candidates_lib.SIZES[args.size],
    args.batch_size,
    jnp.dtype(args.dtype),
    args.shift_ratio,
  )
  device = jax.devices()[0]
  about = {
    **vars(args),
    'device': device.device_kind,
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'optax': optax.__version__,
  }
  print(', '.join(f'{k} {v}' for k, v in about.items()))
  batch = candidates_lib.make_batch(shape)
  candidates = [
    candidates_lib.lipnext(
      shape, args.remat, args.unroll, args.optimizer_precision, batch
    ),
    *(candidates_lib.RIVALS[name](shape, batch) for name in args.rivals),
  ]
  rows = measure(shape, candidates, args.repeats)
  stats = device.memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    print(f'peak in use: {stats["peak_bytes_in_use"] / 2**30:.2f} GiB')
  timing.table(rows[0], [row.values() for row in rows], 'Times in ms.')
  if args.profile:
    profile(candidates[0], args.profile)


if __name__ == '__main__':
  main()
