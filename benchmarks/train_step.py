"""Where a train step's time goes, against a matmul ceiling measured beside it.

    python -m benchmarks.train_step --size L8W512 --batch_size 32 \
      --rivals literal torch
    python -m benchmarks.train_step --size 1B --batch_size 768 --unroll \
      --remat products --dtype bfloat16 --optimizer_precision bfloat16

Forward, forward with backward, optimizer, data and the whole step, in
milliseconds (medians); images/s; model FLOP utilisation; peak memory; compile
time. Model FLOPs count the two token products a block of the fused form, times
three for the backward pass, whatever a candidate really computes. The ceiling
is the fastest of the three forms of that product (forward, by the weight, by
the input) at the same shapes and dtype in the same run. Needs jax, flax, optax
and numpy; the rival 'torch' needs PyTorch. RESULTS.md has recorded runs.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import glob
import json
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
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim
from lipnext_jax.models import forms

# depth, width, patch, image side, channels, classes
SIZES = {
  'tiny': (2, 16, 2, 8, 3, 10),
  'digits': (8, 128, 2, 8, 1, 10),
  'L8W512': (8, 512, 2, 32, 3, 10),
  'L32W1024': (32, 1024, 2, 32, 3, 10),
  '64M': (32, 1024, 14, 224, 3, 1000),
  '256M': (32, 2048, 14, 224, 3, 1000),
  '1B': (32, 4096, 14, 224, 3, 1000),
}
PRECISIONS: dict[str, Any] = {
  'highest': lax.Precision.HIGHEST,
  'default': lax.Precision.DEFAULT,
  'tf32': lax.DotAlgorithmPreset.TF32_TF32_F32,
  'tf32_x3': lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
  'bfloat16': lax.DotAlgorithmPreset.BF16_BF16_F32,
  'bfloat16_x3': lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
}
EPSILON = 36 / 255
STEPS = 4  # In a row, per sample of the step's time.


@dataclasses.dataclass(frozen=True)
class Shape:
  """What is trained on: a model size and a batch."""

  depth: int
  width: int
  patch: int
  side: int
  channels: int
  classes: int
  batch: int
  dtype: Any
  shift_ratio: float = 1 / 8

  @property
  def tokens(self) -> int:
    """Of the whole batch."""
    return self.batch * (self.side // self.patch) ** 2

  @property
  def flops(self) -> int:
    """Model FLOPs of forward and backward, fused form."""
    per_token = 2 * self.depth * self.width**2
    per_token += self.width * self.channels * self.patch**2
    head = self.batch * self.width * self.classes
    return 3 * 2 * (self.tokens * per_token + head)

  def saved(self, form: str) -> int:
    """Bytes that backward needs: of a block u and what S makes, see `forms`."""
    one = self.tokens * self.width * jnp.dtype(self.dtype).itemsize
    block = 1 + 4 * self.shift_ratio if form == 'moved' else 2
    return round((block * self.depth + 1) * one)


class Candidate:
  """A model and its optimizer with their state, and the parts of a step."""

  def __init__(self, name, logits_fn, init_fn, tx, batch, form='auto'):
    self.name, self.batch, self.form = name, batch, form

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
    self._forward, self._grad = jax.jit(loss), jax.jit(jax.grad(loss))
    self._update = jax.jit(update, donate_argnums=(0, 1))
    self._on_device = on_device

  def forward(self):
    """The loss."""
    return self._forward(self.params, *self._on_device)

  def backward(self):
    """Its gradients, forward pass included."""
    return self._grad(self.params, *self._on_device)

  def optimizer(self):
    """One update; gradients of the same size, not of the same values."""
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
    """As the training loop does it: a batch travels while the last computes."""
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
    """One batch onto the device."""
    return jax.device_put(self.batch)

  def parameters(self):
    """Their number."""
    return models.parameter_count(self.params)

  def state_bytes(self):
    """Of parameters and optimizer."""
    leaves = jax.tree.leaves((self.params, self.opt_state))
    return sum(leaf.nbytes for leaf in leaves)

  def peak_bytes(self):
    """What the compiled step needs, state included."""
    m = self._step.memory_analysis()
    return (
      m.argument_size_in_bytes
      + m.output_size_in_bytes
      + m.temp_size_in_bytes
      - m.alias_size_in_bytes
    )


def make_batch(shape: Shape):
  """Random pixels and labels, on the host."""
  rng = np.random.default_rng(0)
  size = (shape.batch, shape.side, shape.side, shape.channels)
  images = rng.integers(0, 256, size, np.uint8)
  labels = rng.integers(0, shape.classes, shape.batch).astype(np.int32)
  return images, labels


def lipnext(shape: Shape, form, remat, unroll, precision, batch):
  """This package, as training composes it."""
  model = models.LipNeXt(
    shape.classes,
    shape.depth,
    shape.width,
    shape.patch,
    shape.shift_ratio,
    dtype=shape.dtype,
    form=form,
    remat=remat,
    unroll=unroll,
  )
  tx = optim.lipnext_optimizer(
    1e-3, precision=PRECISIONS[precision], retraction_period=100
  )

  def logits_fn(params, images):
    variables = {'params': params}
    return model.apply(variables, images), models.head_kernel(variables)

  init_fn = functools.partial(_init, model, shape)
  name = 'LipNeXt' if form == 'auto' else f'LipNeXt, {form}'
  return Candidate(name, logits_fn, init_fn, tx, batch, form)


def literal(shape: Shape, batch):
  """The paper as printed."""
  model = models.LipNeXt(
    shape.classes, shape.depth, shape.width, shape.patch, dtype=shape.dtype
  )

  def logits_fn(params, images):
    images = images.astype(shape.dtype)
    return train_step_literal.logits(params, images, shape.shift_ratio)

  init_fn = functools.partial(_init, model, shape)
  tx = train_step_literal.optimizer(1e-3)
  return Candidate('literal', logits_fn, init_fn, tx, batch)


def _count(model, shape):
  """Numbers among its parameters; nothing is computed."""
  init = functools.partial(_init, model, shape)
  return models.parameter_count(jax.eval_shape(init, jax.random.key(0)))


def _init(model, shape, rng):
  images = jnp.zeros((1, shape.side, shape.side, shape.channels))
  return model.init(rng, images)['params']


def torch(shape: Shape, batch):
  """The same in eager PyTorch."""
  if _on_gpu() or jnp.dtype(shape.dtype) != jnp.float32:
    raise SystemExit('--rivals torch needs a CPU and --dtype=float32.')
  return train_step_torch.Candidate(shape, EPSILON, batch)


def liresnet(shape: Shape, batch):
  """LiResNet with as many parameters."""
  return _baseline(models.LiResNet, shape, batch)


def bronet(shape: Shape, batch):
  """BRONet with as many parameters."""
  return _baseline(models.BRONet, shape, batch)


def _baseline(kind, shape: Shape, batch):
  """A rival of the same depth, as wide as the same parameters allow.

  Its neck sees all tokens of an image at once, and makes an eighth of LipNeXt's
  width of them.
  """
  lipnext = models.LipNeXt(shape.classes, shape.depth, shape.width, shape.patch)
  wanted = _count(lipnext, shape)

  def build(width):
    return kind(
      shape.classes,
      shape.depth,
      width,
      shape.patch,
      dense_width=max(16, shape.width // 8),
      dtype=shape.dtype,
    )

  width = 8
  while _count(build(width + 8), shape) <= wanted:
    width += 8
  model = build(width)

  def logits_fn(params, images):
    variables = {'params': params}
    return model.apply(variables, images), models.head_kernel(variables)

  init_fn = functools.partial(_init, model, shape)
  tx = optim.lipnext_optimizer(1e-3)
  return Candidate(kind.__name__, logits_fn, init_fn, tx, batch)


RIVALS: dict[str, Callable[[Shape, Any], Any]] = {
  'literal': literal,
  'torch': torch,
  'liresnet': liresnet,
  'bronet': bronet,
}


def ceiling(shape: Shape, repeats) -> float:
  """FLOP/s of the fastest form of one token product."""
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

  forms = (
    functools.partial(product(1, 1), x, w),
    functools.partial(product(1, 0), x, w),
    functools.partial(product(0, 0), g, x),
  )
  one = 2 * shape.tokens * shape.width**2
  # Many in a row: a product alone may be shorter than its dispatch.
  count = max(1, min(50, int(2e13 / one)) if _on_gpu() else 1)
  times = timing.medians(
    [lambda f=f: [f() for _ in range(count)][-1] for f in forms], repeats
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
  """Traces a few steps and prints where the device spent its time."""
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
  """Times every part; returns the numbers by candidate."""
  rate = ceiling(shape, repeats)
  parts = {
    part: timing.medians([getattr(c, part) for c in candidates], repeats)
    for part in ('forward', 'backward', 'data')
  }
  several = [functools.partial(c.steps, STEPS) for c in candidates]
  parts['step'] = [took / STEPS for took in timing.medians(several, repeats)]
  parts['optimizer'] = [
    statistics.median([c.optimizer() for _ in range(repeats + 1)][1:])
    for c in candidates
  ]
  results = {}
  for i, c in enumerate(candidates):
    took = {part: times[i] for part, times in parts.items()}
    results[c.name] = {
      **{f'{part}_ms': 1e3 * t for part, t in took.items()},
      'images_per_second': shape.batch / took['step'],
      'ceiling_tflops': rate / 1e12,
      'passes_of_ceiling': shape.flops / took['backward'] / rate,
      'step_of_ceiling': shape.flops / took['step'] / rate,
      'optimizer_of_step': took['optimizer'] / took['step'],
      'compile_s': c.compile_seconds,
      'parameters': c.parameters(),
      'state_gib': c.state_bytes() / 2**30,
      'saved_gib': shape.saved(c.form) / 2**30,
      'peak_gib': c.peak_bytes() / 2**30,
    }
  return results


def show(results):
  """One row a candidate."""
  head = {
    '': lambda r: '',
    'parameters': lambda r: f'{r["parameters"] / 2**20:.1f}·2²⁰',
    'forward': lambda r: f'{r["forward_ms"]:.0f}',
    'forward + backward': lambda r: f'{r["backward_ms"]:.0f}',
    'of ceiling': lambda r: f'{100 * r["passes_of_ceiling"]:.0f} %',
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
  """Parses the command line, measures, prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--size', choices=list(SIZES), required=True)
  parser.add_argument('--batch_size', type=int, required=True)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--shift_ratio', type=float, default=1 / 8, help='α')
  parser.add_argument(
    '--forms', nargs='+', choices=forms.FORMS, default=['auto']
  )
  parser.add_argument('--remat', default='none')
  parser.add_argument('--unroll', action='store_true', help='no loop')
  parser.add_argument(
    '--optimizer_precision', choices=list(PRECISIONS), default='highest'
  )
  parser.add_argument('--rivals', nargs='*', choices=list(RIVALS), default=[])
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--profile', help='trace one step into this folder')
  parser.add_argument('--json', help='append the numbers to this file')
  args = parser.parse_args()

  shape = Shape(
    *SIZES[args.size],
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
  batch = make_batch(shape)
  candidates = [
    lipnext(
      shape, form, args.remat, args.unroll, args.optimizer_precision, batch
    )
    for form in args.forms
  ]
  candidates += [RIVALS[name](shape, batch) for name in args.rivals]
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
