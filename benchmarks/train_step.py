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
import bisect
from collections.abc import Callable
import dataclasses
import functools
import glob
import os
import statistics
import time
from typing import Any

import flax
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import timing
from benchmarks import train_step_literal
from benchmarks import train_step_torch
from lipnext_jax import config
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim

STEPS = 4  # Steps in a row per sample of the step's time.
UPDATES = 4  # Samples of the optimizer's short time per sample of another part.
# Name → depth, width, patch, image side, channels, classes.
SIZES = {
  'tiny': (2, 16, 2, 8, 3, 10),
  'digits': (8, 128, 2, 8, 1, 10),
  'L4W512': (4, 512, 2, 32, 3, 10),
  'L8W512': (8, 512, 2, 32, 3, 10),
  'L32W1024': (32, 1024, 2, 32, 3, 10),
  '64M': (32, 1024, 14, 224, 3, 1000),
  '256M': (32, 2048, 14, 224, 3, 1000),
  '1B': (32, 4096, 14, 224, 3, 1000),
}
PRECISIONS = {
  **config.PRECISIONS,
  'tf32': jax.lax.DotAlgorithmPreset.TF32_TF32_F32,
}
EPSILON = 36 / 255


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a model and of a batch."""

  depth: int
  width: int
  patch: int
  side: int
  channels: int
  classes: int
  batch: int
  dtype: Any
  shift_ratio: float = 1 / 8

  def lipnext(self, **options) -> models.LipNeXt:
    """Returns the model of this size."""
    return models.LipNeXt(
      self.classes,
      self.depth,
      self.width,
      self.patch,
      self.shift_ratio,
      dtype=self.dtype,
      **options,
    )

  @property
  def tokens(self) -> int:
    """Number of tokens in the batch."""
    return self.batch * (self.side // self.patch) ** 2

  @property
  def flops(self) -> float:
    """FLOPs of the products that both passes need."""
    per_token = (1 + 8 * self.shift_ratio) * self.depth * self.width**2
    per_token += self.width * self.channels * self.patch**2
    head = self.batch * self.width * self.classes
    return 3 * 2 * (self.tokens * per_token + head)

  @property
  def saved(self) -> int:
    """Bytes saved for backward: u and the moved channels of every block."""
    one = self.tokens * self.width * jnp.dtype(self.dtype).itemsize
    return round(((1 + 4 * self.shift_ratio) * self.depth + 1) * one)


class Candidate:
  """A model and its optimizer with their state, and the parts of a step."""

  def __init__(self, name, logits_fn, init_fn, tx, batch):
    self.name, self.batch = name, batch

    def loss(params, images, labels):
      images = images.astype(jnp.float32) / 255
      logits, kernel = logits_fn(params, images)
      return losses.emma_loss(logits, labels, kernel, EPSILON)

    def update(params, opt_state, grads):
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    def step(params, opt_state, images, labels):
      value, grads = jax.value_and_grad(loss)(params, images, labels)
      return *update(params, opt_state, grads), value

    self.params = jax.jit(init_fn)(jax.random.key(0))
    self.opt_state = jax.jit(tx.init)(self.params)
    self._grads = None
    state = self.params, self.opt_state
    on_device = jax.device_put(batch)
    begin = time.perf_counter()
    step = jax.jit(step, donate_argnums=(0, 1))
    self._step: Any = step.lower(*state, *on_device).compile()
    self.compile_seconds = time.perf_counter() - begin
    self._forward = jax.jit(loss)
    self._grad = jax.jit(jax.grad(loss))
    self._update = jax.jit(update, donate_argnums=(0, 1))
    self._on_device = on_device

  def forward(self):
    """Returns the loss."""
    return self._forward(self.params, *self._on_device)

  def backward(self):
    """Returns the gradients, by a forward and a backward pass."""
    return self._grad(self.params, *self._on_device)

  def optimizer(self):
    """Updates the parameters with old gradients; returns the seconds taken."""
    if self._grads is None:
      self._grads = self.backward()
    keep = jax.tree.map(jnp.copy, self._grads)
    jax.block_until_ready(keep)
    begin = time.perf_counter()
    self.params, self.opt_state = self._update(
      self.params, self.opt_state, keep
    )
    jax.block_until_ready(self.params)
    return time.perf_counter() - begin

  def steps(self, count):
    """Takes steps as the training loop does, and returns the last loss.

    A batch travels to the device while the step before computes.
    """
    self._grads = None
    batch = jax.device_put(self.batch)
    value = None
    for _ in range(count):
      self.params, self.opt_state, value = self._step(
        self.params, self.opt_state, *batch
      )
      batch = jax.device_put(self.batch)
    return value

  def data(self):
    """Puts a batch on the device."""
    return jax.device_put(self.batch)

  def parameters(self):
    """Counts the parameters."""
    return models.parameter_count(self.params)

  def state_bytes(self):
    """Counts the bytes of parameters and optimizer."""
    leaves = jax.tree.leaves((self.params, self.opt_state))
    return sum(leaf.nbytes for leaf in leaves)

  def peak_bytes(self):
    """Returns the memory of the compiled step, state included."""
    m = self._step.memory_analysis()
    return (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      + m.temp_size_in_bytes
      - m.alias_size_in_bytes
    )


def make_batch(shape: Shape):
  """Makes random pixels and labels on the host."""
  rng = np.random.default_rng(0)
  size = (shape.batch, shape.side, shape.side, shape.channels)
  images = rng.integers(0, 256, size, np.uint8)
  labels = rng.integers(0, shape.classes, shape.batch).astype(np.int32)
  return images, labels


def _init(model, shape, rng):
  images = jnp.zeros((1, shape.side, shape.side, shape.channels))
  return model.init(rng, images)['params']


def _candidate(name, model, shape: Shape, tx, batch):
  def logits_fn(params, images):
    variables = {'params': params}
    return model.apply(variables, images), models.head_kernel(variables)

  init_fn = functools.partial(_init, model, shape)
  return Candidate(name, logits_fn, init_fn, tx, batch)


def lipnext(shape: Shape, remat, unroll, precision, batch):
  """Makes the candidate of this package, as training composes it."""
  model = shape.lipnext(remat=remat, unroll=unroll)
  tx = optim.lipnext_optimizer(
    1e-3, precision=PRECISIONS[precision], retraction_period=100
  )
  return _candidate('LipNeXt', model, shape, tx, batch)


def literal(shape: Shape, batch):
  """Makes the candidate of the paper as printed, with a square R."""
  model = shape.lipnext()

  def logits_fn(params, images):
    images = images.astype(shape.dtype)
    return train_step_literal.logits(params, images, shape.shift_ratio)

  def init_fn(rng):
    return train_step_literal.square(_init(model, shape, rng))

  tx = train_step_literal.optimizer(1e-3)
  return Candidate('literal', logits_fn, init_fn, tx, batch)


def torch(shape: Shape, batch):
  """Makes the candidate of the paper as printed in eager PyTorch."""
  if jax.default_backend() == 'gpu' or jnp.dtype(shape.dtype) != jnp.float32:
    raise SystemExit('--rivals torch needs a CPU and --dtype=float32.')
  return train_step_torch.Candidate(shape, EPSILON, batch)


def baseline(kind, shape: Shape, batch):
  """Makes a baseline of LipNeXt's depth, as wide as its parameters allow.

  Its neck maps all tokens of an image to an eighth of LipNeXt's width.
  """

  def build(width):
    return kind(
      shape.classes,
      shape.depth,
      width,
      shape.patch,
      dense_width=max(16, shape.width // 8),
      dtype=shape.dtype,
    )

  def count(model):
    init = functools.partial(_init, model, shape)
    return models.parameter_count(jax.eval_shape(init, jax.random.key(0)))

  widths = range(8, 4 * shape.width + 1, 8)
  wider = bisect.bisect_right(
    widths, count(shape.lipnext()), key=lambda width: count(build(width))
  )
  model = build(widths[max(0, wider - 1)])
  tx = optim.lipnext_optimizer(1e-3)
  return _candidate(kind.__name__, model, shape, tx, batch)


RIVALS: dict[str, Callable[[Shape, Any], Any]] = {
  'literal': literal,
  'torch': torch,
  'liresnet': functools.partial(baseline, models.LiResNet),
  'bronet': functools.partial(baseline, models.BRONet),
}


def ceiling(shape: Shape, repeats) -> float:
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
  on_gpu = jax.default_backend() == 'gpu'
  count = max(1, min(50, int(2e13 / one)) if on_gpu else 1)
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


def measure(shape: Shape, candidates, repeats):
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
  parser.add_argument('--size', choices=list(SIZES), required=True)
  parser.add_argument('--batch_size', type=int, required=True)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument('--remat', default='products')
  parser.add_argument('--unroll', action='store_true', help='no loop')
  parser.add_argument(
    '--optimizer_precision',
    choices=list(PRECISIONS),
    default='highest',
  )
  parser.add_argument('--rivals', nargs='*', choices=list(RIVALS), default=[])
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--profile', help='trace one step into this folder')
  args = parser.parse_args()

  shape = Shape(
    *SIZES[args.size],
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
  batch = make_batch(shape)
  candidates = [
    lipnext(shape, args.remat, args.unroll, args.optimizer_precision, batch),
    *(RIVALS[name](shape, batch) for name in args.rivals),
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
