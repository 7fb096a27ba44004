"""Compile time of the train step against depth: the blocks are scanned.

    python -m benchmarks.compile_time --depths 8 64 --width 128

Prints the median over repeats for each depth (they take turns) and the ratio
of the last to the first. Needs jax, flax, optax and numpy alone.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim


def compile_seconds(depth: int, width: int, batch_size: int, side: int):
  """Seconds to lower and compile one train step, without allocating."""
  model = models.LipNeXt(10, depth, width, patch_size=2)
  tx = optim.lipnext_optimizer(1e-3)
  images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
  labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  opt_state = jax.eval_shape(tx.init, params)

  def train_step(params, opt_state, images, labels):
    def objective(params):
      variables = {'params': params}
      logits: Any = model.apply(variables, images)
      kernel = models.head_kernel(variables)
      return losses.emma_loss(logits, labels, kernel, 0.25)

    grads = jax.grad(objective)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  start = time.perf_counter()
  lowered = jax.jit(train_step, donate_argnums=(0, 1)).lower(
    params, opt_state, images, labels
  )
  lowered.compile()
  return time.perf_counter() - start


def main() -> None:
  """Prints one line per depth, then the ratio."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--depths', type=int, nargs='+', default=[8, 64])
  parser.add_argument('--width', type=int, default=128)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--side', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()

  def measure(depth):
    return compile_seconds(depth, args.width, args.batch_size, args.side)

  measure(args.depths[0])  # Warm-up: first use of the compiler itself.
  seconds: dict[int, list[float]] = {depth: [] for depth in args.depths}
  for _ in range(args.repeats):
    for depth in args.depths:
      seconds[depth].append(measure(depth))
  medians = [statistics.median(seconds[depth]) for depth in args.depths]
  for depth, median in zip(args.depths, medians, strict=True):
    print(f'depth {depth:4d}: {median:.2f} s (median of {args.repeats})')
  print(f'ratio: {medians[-1] / medians[0]:.2f}')


if __name__ == '__main__':
  main()
