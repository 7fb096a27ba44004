"""Times the parts of a train step, and compares with the speed of products.

    python -m benchmarks.train_step --size L8W512 --batch_size 32 \
      --rivals literal torch
    python -m benchmarks.train_step --size 1B --batch_size 768 --unroll \
      --remat products --dtype bfloat16 --optimizer_precision bfloat16

Prints medians of forward, forward with backward, optimizer, data and the whole
step, images/s, the share of the ceiling, peak memory and compile time.

The ceiling is the speed of the fastest form (forward, by the weight, by the
input) of one token product at the same shapes and dtype. It is measured before
and after the candidates, and the better value counts. A step's share of it
counts the products that a block needs, (1 + 8α) c² a token, three times for
forward and backward, whatever a candidate computes; in brackets, it counts the
2 c² of a block that has M Rᵀ as one matrix. The rival 'torch' needs PyTorch.
RESULTS.md has recorded runs.
"""

import argparse
import functools
import glob
import json
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
  """Times every part of every candidate; returns {name: {quantity: value}}."""
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
  rate = max(before, ceiling(shape, repeats))
  needed = shape.flops(1 + 8 * shape.shift_ratio)
  results = {}
  for i, c in enumerate(candidates):
    took = {part: times[i] for part, times in parts.items()}
    results[c.name] = {
      **{f'{part}_ms': 1e3 * t for part, t in took.items()},
      'images_per_second': shape.batch / took['step'],
      'ceiling_tflops': rate / 1e12,
      'passes_of_ceiling': needed / took['backward'] / rate,
      'passes_of_ceiling_fused': shape.flops(2) / took['backward'] / rate,
      'step_of_ceiling': needed / took['step'] / rate,
      'optimizer_of_step': took['optimizer'] / took['step'],
      'compile_s': c.compile_seconds,
      'parameters': c.parameters(),
      'state_gib': c.state_bytes() / 2**30,
      'saved_gib': shape.saved / 2**30,
      'peak_gib': c.peak_bytes() / 2**30,
    }
  return results


def show(results):
  """Prints a table with a row for each candidate."""
  head = {
    '': lambda r: '',
    'parameters': lambda r: f'{r["parameters"] / 2**20:.1f}·2²⁰',
    'forward': lambda r: f'{r["forward_ms"]:.0f}',
    'forward + backward': lambda r: f'{r["backward_ms"]:.0f}',
    'of ceiling (fused)': lambda r: (
      f'{100 * r["passes_of_ceiling"]:.0f} % '
      f'({100 * r["passes_of_ceiling_fused"]:.0f} %)'
    ),
    'optimizer': lambda r: (
      f'{r["optimizer_ms"]:.0f} ({100 * r["optimizer_of_step"]:.0f} %)'
    ),
    'data': lambda r: f'{r["data_ms"]:.1f}',
    'step': lambda r: f'{r["step_ms"]:.0f}',
    'images/s': lambda r: f'{r["images_per_second"]:.1f}',
    'step of ceiling': lambda r: f'{100 * r["step_of_ceiling"]:.0f} %',
    'peak GiB': lambda r: f'{r["peak_gib"]:.2f}',
    '/ (state + saved)': lambda r: (
      f'{r["peak_gib"] / (r["state_gib"] + r["saved_gib"]):.2f}'
    ),
    'compile s': lambda r: f'{r["compile_s"]:.1f}',
  }
  timing.table(
    list(head),
    [
      [name, *(cell(r) for title, cell in head.items() if title)]
      for name, r in results.items()
    ],
  )


def main() -> None:
  """Parses the command line, measures, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--size', choices=list(candidates_lib.SIZES), required=True
  )
  parser.add_argument('--batch_size', type=int, required=True)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument('--remat', default='none')
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
  parser.add_argument('--json', help='append the numbers to this file')
  args = parser.parse_args()

  shape = candidates_lib.Shape(
    *candidates_lib.SIZES[args.size],
    args.batch_size,
    jnp.dtype(args.dtype),
    args.shift_ratio,
  )
  device = jax.devices()[0]
  about = {
    'size': args.size,
    'batch': args.batch_size,
    'dtype': args.dtype,
    'shift_ratio': args.shift_ratio,
    'remat': args.remat,
    'unroll': args.unroll,
    'optimizer_precision': args.optimizer_precision,
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
  results = measure(shape, candidates, args.repeats)
  stats = device.memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    print(f'peak in use: {stats["peak_bytes_in_use"] / 2**30:.2f} GiB')
  show(results)
  if args.profile:
    profile(candidates[0], args.profile)
  if args.json:
    with open(args.json, 'a', encoding='utf-8') as f:
      for name, r in results.items():
        f.write(json.dumps(about | {'name': name} | r) + '\n')


if __name__ == '__main__':
  main()
