"""Measures Λ, E and the time of both certificates.

    python -m benchmarks.certificates --depth 32 --width 1024

The model is a LipNeXt with random weights, biases and positions, on images of
CIFAR's shape. Prints a Markdown table; RESULTS.md has recorded ones.
"""

import argparse
import platform
import time

import jax
import numpy as np

from benchmarks import timing
from lipnext_jax import certify
from lipnext_jax import models


def make(depth: int, width: int, batch: int):
  """Returns a model, random parameters, and images [b, 32, 32, 3]."""
  model = models.LipNeXt(
    num_classes=10, depth=depth, width=width, patch_size=2, precision='highest'
  )
  rng = np.random.default_rng(0)
  images = rng.random((batch, 32, 32, 3)).astype(np.float32)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])['params']

  def fill(path, leaf):
    if path[-1].key in ('bias', 'pos'):
      # As large as trained biases of the digits model.
      return np.float32(0.05 * rng.normal(size=leaf.shape))
    return np.asarray(leaf)

  return model, jax.tree_util.tree_map_with_path(fill, params), images


def main():
  """Parses the command line, measures, prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--depth', type=int, default=32)
  parser.add_argument('--width', type=int, default=1024)
  parser.add_argument('--batch', type=int, default=8)
  args = parser.parse_args()
  model, params, images = make(args.depth, args.width, args.batch)

  begin = time.perf_counter()
  bound = certify.lipschitz_bound(params)
  proving = time.perf_counter() - begin

  constants = certify.prove_constants(params)
  floor = np.median(certify.margin_floor(images, constants))
  fast = certify.fast_certifier(model, jax.device_put(params))
  fast_radii = np.min(fast(images)[1], axis=-1)
  begin = time.perf_counter()
  certifier = certify.rigorous_certifier(model, params)
  preparing = time.perf_counter() - begin
  found = certifier(images)
  fast_time, rigorous_time = timing.medians(
    (lambda: fast(images), lambda: certifier(images)), 1
  )
  gap = np.max(np.abs(fast_radii - found.radii))

  print(
    f'jax {jax.__version__}, {jax.devices()[0].device_kind}, '
    f'{platform.machine()}; L{args.depth}W{args.width}, 32×32×3, '
    f'batch {args.batch}.'
  )
  rows = (
    ('Λ − 1', f'{bound - 1:.1e}'),
    ('E, largest of the batch', f'{np.max(found.logit_errors):.1e}'),
    ('fast: subtracted from a margin, median', f'{floor:.1e}'),
    ('median certified radius', f'{np.median(found.radii):.2e}'),
    ('largest difference of fast and rigorous radii', f'{gap:.1e}'),
    ('proving Λ, seconds', f'{proving:.1f}'),
    ('preparing the rigorous certifier, seconds', f'{preparing:.1f}'),
    ('fast, seconds an image', f'{fast_time / args.batch:.3f}'),
    ('rigorous, seconds an image', f'{rigorous_time / args.batch:.3f}'),
  )
  timing.table(('', ''), rows)


if __name__ == '__main__':
  main()
