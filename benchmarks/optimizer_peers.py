"""Compares our orthogonal optimizer with geoopt's, riemannax's and geojax's.

    python -m benchmarks.optimizer_peers
    python -m benchmarks.optimizer_peers --what converge --only 'ours|geoopt'

The other libraries are not dependencies of this project; the tables say which
are not installed. Keep them in an environment of their own:

    python3.11 -m venv peers
    peers/bin/pip install jax optax torch
    peers/bin/pip install geoopt==0.5.1 riemannax==0.0.3 geojax==0.1.1
    JAX_PLATFORMS=cpu peers/bin/python -m benchmarks.optimizer_peers

Everything is float32, with the defaults of each library and gradients from JAX.
The memory of a step includes the application of the update. Prints Markdown
tables in about 10 minutes on two idle cores; `optimizer_libraries` has the
contenders.
"""

import argparse
from importlib import metadata
import math
import os
import platform
import re
import statistics
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import optimizer_libraries
from benchmarks.optimizer_convergence import procrustes
from benchmarks.optimizer_rivals import mm
from benchmarks.timing import table

# Solvers of geojax that find their own steps.
SOLVERS = ('TrustRegions', 'BarzilaiBorwein', 'ConjugateGradient', 'LBFGS')


def build(table_name, args, rows, side=0):
  """Returns the contenders of a table by name.

  Appends (name, reason) to `rows` for contenders that are not installed, or
  that would make arrays of size side×side with side > args.largest.
  """
  built = {}
  for name, (make, tables) in optimizer_libraries.CONTENDERS.items():
    if table_name not in tables or not re.search(args.only, name):
      continue
    if name in optimizer_libraries.NEEDS_MXM and side > args.largest:
      rows.append((name, 'not run: m×m arrays'))
      continue
    try:
      built[name] = make()
    except ModuleNotFoundError:
      rows.append((name, 'not installed'))
  return built


def random_orthonormal(shape, seed):
  """Returns a matrix [m, n] with orthonormal columns."""
  rng = np.random.default_rng(seed)
  return np.float32(np.linalg.qr(rng.normal(size=shape))[0])


def measure_defect(x):
  """Returns ‖XᵀX − I‖₂ in float64; nan where x is not finite."""
  x = np.asarray(x, np.float64)
  if not np.all(np.isfinite(x)):
    return math.nan
  return float(np.linalg.norm(x.T @ x - np.eye(x.shape[1]), 2))


# -- Time ---------------------------------------------------------------------


def measure_time(shape, args):
  """Returns rows: the fastest step over the fastest XᵀX, and peak memory.

  Contenders take turns, with a product before every step. Entries of Adam's
  first steps are as large as the rate, which sets ‖Δ‖_F: from 1 on, ours uses
  the exact exponential.
  """
  x = jnp.asarray(random_orthonormal(shape, 0))
  g = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  gram = jax.jit(lambda x: mm(x.T, x)).lower(x).compile()
  kind = 'square' if shape[0] == shape[1] else 'tall'
  rows: list[tuple[str, ...]] = []
  entries: list[tuple[str, Any, float, float, list[float]]] = []
  products = []
  for name, contender in build(kind, args, rows, shape[0]).items():
    size = shape[0] ** 2 if 'algebra' in name else x.size
    for norm in (0.5, 2.0) if name.startswith('ours') else (0.5,):
      entries.append((name, contender, norm, norm / math.sqrt(size), []))
  for turn in range(1 + args.repeats):
    for _, contender, _, rate, took in entries:
      if sum(took) > args.patience:
        continue
      begin = time.perf_counter()
      jax.block_until_ready(gram(x))
      product = time.perf_counter() - begin
      if turn == 0:
        contender.reset(x)
      step = contender.step(g, rate)
      if turn > 0:  # The first turn compiles.
        products.append(product)
        took.append(step)
  one = min(products, default=math.nan)
  for name, contender, norm, _, took in entries:
    ms, ratio = f'{1e3 * min(took):.2f}', f'{min(took) / one:.2f}'
    rows.append((name, f'{norm:g}', ms, ratio, contender.memory))
  return [('one product XᵀX', '', f'{1e3 * one:.2f}', '1', ''), *rows]


# -- Convergence --------------------------------------------------------------


def eigenspace(shape, seed):
  """Makes min −tr(D XᵀSX) over X [m, n]: n eigenvectors of S, in order.

  The eigenvalues of S are powers of 0.9, those of D fall from 1 to 1/n.
  """
  m, n = shape
  rng = np.random.default_rng(seed)
  q = np.linalg.qr(rng.normal(size=(m, m)))[0]
  s = (q * 0.9 ** np.arange(m)) @ q.T
  weights = np.linspace(1, 1 / n, n)
  best = -np.sum(weights * np.linalg.eigvalsh(s)[::-1][:n])

  def loss(x, data):
    s, weights = data
    return -jnp.sum(jnp.sum(x * mm(s, x), axis=0) * weights)

  start = random_orthonormal(shape, [seed, 1])
  return loss, (jnp.float32(s), jnp.float32(weights)), start, best


class Found(NamedTuple):
  """Steps, seconds and defect when the gap was reached; infinite if never."""

  steps: float = math.inf
  seconds: float = math.inf
  defect: float = math.inf

  def cells(self, rate, length):
    """Returns the cells of a row."""
    if math.isinf(self.steps):
      return f'> {length}', '', '', ''
    return f'{self.steps:g}', f'{self.seconds:.2f}', rate, f'{self.defect:.0e}'


def medians(runs):
  """Returns the medians of several results."""
  return Found(*map(statistics.median, zip(*runs, strict=True)))


def descend(contender, problem, rate, limit, args):
  """Takes at most `limit` steps to the gap, and returns what it took.

  The rate follows a cosine to zero over args.length steps.
  """
  value_and_grad, data, start, best = problem
  contender.reset(start)
  begin = time.perf_counter()
  for t in range(limit + 1):
    value, g = value_and_grad(contender.point(), data)
    if abs(float(value) / best - 1) <= args.gap:
      took = time.perf_counter() - begin
      return Found(t, took, measure_defect(contender.point()))
    if not jnp.isfinite(value):
      break
    contender.step(g, rate * (1 + math.cos(math.pi * t / args.length)) / 2)
  return Found()


def best_rate(contender, problems, args):
  """Returns the medians at the rate of the fewest steps, and that rate.

  Tries rates from the middle outwards, and gives up a rate once it cannot be
  the best.
  """
  found, best = Found(), math.nan
  middle = statistics.median(map(math.log, args.rates))
  for rate in sorted(args.rates, key=lambda r: abs(math.log(r) - middle)):
    limit = int(min(args.length, found.steps - 1))
    runs: list[Found] = []
    while len(runs) < len(problems):
      problem = problems[len(runs)]
      runs.append(descend(contender, problem, rate, limit, args))
      if 2 * runs.count(Found()) > len(problems):
        break
    else:
      found, best = min((found, best), (medians(runs), rate))
  return found, f'{best:.2g}'


def solve(solver, problem, args):
  """Runs a solver of geojax, and returns what it took; see `descend`."""
  loss, data, start, best = problem

  def reached(value):
    return abs(value / best - 1) <= args.gap

  steps, seconds, value, x = optimizer_libraries.geojax_solve(
    solver,
    lambda x: loss(x, data),
    start,
    reached,
    max_steps=args.length,
    max_seconds=args.solver_seconds,
  )
  return Found(steps, seconds, measure_defect(x)) if reached(value) else Found()


def measure_convergence(make, args):
  """Returns rows: steps and seconds to the gap at the best rate."""
  problems = [make(seed) for seed in range(args.seeds)]
  compiled = []
  for loss, data, start, best in problems:
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    value_and_grad(jnp.asarray(start), data)
    compiled.append((value_and_grad, data, start, best))
  rows: list[tuple[str, ...]] = []
  for name, contender in build('converge', args, rows).items():
    found, rate = best_rate(contender, compiled, args)
    rows.append((name, *found.cells(rate, args.length)))
  for solver in SOLVERS:
    name = f'geojax {solver}'
    if re.search(args.only, name):
      try:
        found = medians([solve(solver, problem, args) for problem in problems])
        rows.append((name, *found.cells('its own', args.length)))
      except ModuleNotFoundError:
        rows.append((name, 'not installed'))
  return rows


# -- Defect -------------------------------------------------------------------


def measure_drift(shape, args):
  """Returns rows: the defect one step before the last, and after it.

  Ours retracts every 100 steps, thus in the last.
  """
  rows: list[tuple[str, ...]] = []
  for name, contender in build('defect', args, rows, shape[0]).items():
    rng = np.random.default_rng(2)
    contender.reset(random_orthonormal(shape, 0))
    defects = []
    for step in range(args.steps):
      g = rng.normal(size=shape).astype(np.float32)
      contender.step(g, args.rate)
      if step >= args.steps - 2:
        defects.append(f'{measure_defect(contender.point()):.1e}')
    rows.append((name, *defects))
  return rows


# -- Command line -------------------------------------------------------------


def shape(text):
  """Parses a shape such as 4096x512."""
  m, n = map(int, text.split('x'))
  return m, n


def parse_arguments():
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  option = parser.add_argument
  parts = ('time', 'converge', 'defect')
  option('--what', choices=parts, nargs='+', default=parts)
  option('--only', default='', help='expression in the names of the rows')
  option('--seeds', type=int, default=3)
  option('--patience', type=float, default=5, help='seconds for a slow row')
  option('--solver_seconds', type=float, default=20, help='at most, of geojax')
  option('--largest', type=int, default=8192, help='m for which m×m arrays fit')
  shapes = ((512, 512), (1024, 1024), (30000, 50), (4096, 512))
  option('--shapes', type=shape, nargs='+', default=shapes, help='of time')
  option('--repeats', type=int, default=5)
  option('--n', type=int, default=256, help='of Procrustes')
  option('--eigenspace', type=shape, default=(1000, 20))
  # Five in two decades.
  rates = tuple(10 ** (k / 2.5) for k in range(-4, 5))
  option('--rates', type=float, nargs='+', default=rates)
  option('--length', type=int, default=200, help='of the cosine, in steps')
  option('--gap', type=float, default=1e-4)
  drift_shapes = ((256, 256), (256, 32))
  option('--drift_shapes', type=shape, nargs='+', default=drift_shapes)
  option('--steps', type=int, default=1000, help='to the defect')
  option('--rate', type=float, default=1e-3, help='of the steps to the defect')
  return parser.parse_args()


def versions():
  """Returns the versions of the libraries and the machine, in one line."""
  found = [f'{platform.machine()}, {os.cpu_count()} cores']
  for name in ('jax', 'optax', 'torch', 'geoopt', 'riemannax', 'geojax'):
    try:
      found.append(f'{name} {metadata.version(name)}')
    except metadata.PackageNotFoundError:
      found.append(f'no {name}')
  return ', '.join(found)


def main():
  """Parses the command line and prints the tables."""
  args = parse_arguments()
  print(versions() + '\n')
  if 'time' in args.what:
    head = ['step with Adam', '‖Δ‖_F', 'ms', '/ product', 'copies of X']
    for m, n in args.shapes:
      rows = measure_time((m, n), args)
      table(head, rows, f'{m}×{n}, time and memory.')
  if 'converge' in args.what:
    head = ['', 'steps', 'seconds', 'rate', 'defect']
    note = (
      f'gap {args.gap:g}, medians of {args.seeds} seeds, cosine over '
      f'{args.length} steps, {len(args.rates)} rates {min(args.rates):.2g} to '
      f'{max(args.rates):.2g}.'
    )
    rows = measure_convergence(lambda seed: procrustes(args.n, seed), args)
    table(head, rows, f'Procrustes, n={args.n}: {note}')
    m, n = args.eigenspace
    rows = measure_convergence(lambda seed: eigenspace((m, n), seed), args)
    table(head, rows, f'Eigenspace, {m}×{n}: {note}')
  if 'defect' in args.what:
    head = ['', f'{args.steps - 1} steps', f'{args.steps} steps']
    for m, n in args.drift_shapes:
      rows = measure_drift((m, n), args)
      table(head, rows, f'{m}×{n}, defect at rate {args.rate:g}.')


if __name__ == '__main__':
  main()
