"""Measures time, drift, precision and convergence of orthogonal steps.

    python -m benchmarks.optimizer --what time --sizes 256 512 1024
    python -m benchmarks.optimizer --what drift
    python -m benchmarks.optimizer --what plot    # docs/drift.svg
    python -m benchmarks.optimizer --what precision --n 1024
    python -m benchmarks.optimizer --what converge

Prints Markdown tables; benchmarks/RESULTS.md has recorded ones.
`optimizer_rivals` has the other methods, `optimizer_convergence` the problems.
"""

import argparse
import functools
import os
import platform
import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import optimizer_convergence as convergence
from benchmarks.optimizer_rivals import cayley
from benchmarks.optimizer_rivals import lifted
from benchmarks.optimizer_rivals import literal
from benchmarks.optimizer_rivals import mm
from benchmarks.optimizer_rivals import qr
from benchmarks.optimizer_rivals import skew
from benchmarks.timing import fastest
from benchmarks.timing import table
from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import polar_retract

# -- Time ---------------------------------------------------------------------


def measure_time(n, stack, repeats, only):
  """Yields rows: time of a step, Adam included, over that of one product."""
  g = jax.random.normal(jax.random.key(0), (stack, n, n))
  x = jnp.broadcast_to(jnp.eye(n)[None], g.shape) + 0
  product = functools.partial(jax.jit(mm), x, g)

  def row(name, call):
    one, took = fastest((product, call), repeats)
    return n, name, f'{1e3 * took:.1f}', f'{took / one:.2f}'

  yield row('one batched product', product)
  # Entries of Adam's first steps are ±lr, so that ‖Δ‖_F = lr·n.
  bands = {'order 2': 0.04, 'order 3': 0.2, 'order 4': 0.8, 'exact': 2.0}
  adam = {band: optax.adam(norm / n) for band, norm in bands.items()}
  steps = {f'ours, {band}': orthogonal(rule) for band, rule in adam.items()}
  steps['ours, order 4, lookahead'] = orthogonal(
    adam['order 4'], lookahead_period=6
  )
  steps['ours, projection'] = orthogonal(
    adam['exact'], large_steps='projection'
  )
  for band, rule in adam.items():
    steps[f'literal, {band}'] = lifted(literal, rule)
  steps['Cayley'] = lifted(cayley, adam['order 4'])
  steps['QR'] = lifted(qr, adam['order 4'])
  for name, tx in steps.items():
    if re.search(only, name):
      state = jax.jit(tx.init)(x)
      # Not donated, unlike in training, so that calls can be repeated.
      yield row(name, functools.partial(jax.jit(tx.update), g, state, x))
  for method in ('newton_schulz', 'svd'):
    name = f'(one retraction, {method})'
    if re.search(only, name):
      retract = jax.jit(functools.partial(polar_retract, method=method))
      yield row(name, functools.partial(retract, x + 1e-8 * g))


# -- Drift --------------------------------------------------------------------


def follow_drift(tx, x, grad_fn, at):
  """Yields the orthogonality error after each number of steps in `at`."""

  @jax.jit
  def go(carry, done, steps):
    def body(t, carry):
      x, state = carry
      gradient = grad_fn(x, jax.random.fold_in(jax.random.key(3), t))
      updates, state = tx.update(gradient, state, x)
      return optax.apply_updates(x, updates), state

    return lax.fori_loop(done, steps, body, carry)

  carry, done = (x, jax.jit(tx.init)(x)), 0
  for steps in at:
    carry, done = go(carry, done, steps), steps
    yield float(orthogonality_error(carry[0]))


def measure_drift(n, learning_rate):
  """Prints the orthogonality error after 1,000 and 10,000 steps of Adam."""
  x = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (n, n)))[0]
  # A gradient XW is the same in the algebra at every X.
  gradients = {
    'fresh': lambda x, key: mm(x, jax.random.normal(key, x.shape)),
    'all the same': lambda x, _: mm(
      x, jax.random.normal(jax.random.key(2), x.shape)
    ),
  }
  adam = optax.adam(learning_rate)
  cases = {
    'never retracted': (orthogonal(adam, retraction_period=None), 1),
    'retracted every 100': (orthogonal(adam), 1),
    'with lookahead 6': (orthogonal(adam, lookahead_period=6), 1),
    'in MultiSteps(2)': (optax.MultiSteps(orthogonal(adam), 2), 2),
  }
  rows = []
  for name, (tx, calls) in cases.items():
    for kind, grad_fn in gradients.items():
      # 9,999 steps are 99 after the last retraction.
      at = [calls * steps for steps in (1000, 9999, 10_000)]
      found = follow_drift(tx, x, grad_fn, at)
      rows.append((name, kind, *(f'{error:.1e}' for error in found)))
  print(f'n={n}, Adam, learning rate {learning_rate:g}.')
  table(('', 'gradients', '1,000 steps', '9,999 steps', '10,000 steps'), rows)


# Order → (thresholds that force it, angle t, |p(it)|² − 1).
ORDERS = {
  'order 2': ((9, 9, 9), 0.05 / 2**0.5, lambda t: t**4 / 4),
  'order 3': ((0, 9, 9), 0.25 / 2**0.5, lambda t: -(t**4) / 12 + t**6 / 36),
  'order 4': ((0, 0, 9), 1 / 2**0.5, lambda t: -(t**6) / 72 + t**8 / 576),
  'exact': ((0, 0, 0), 1 / 2**0.5, None),
}


def plot_drift():
  """Draws docs/drift.svg: orthogonality error against steps.

  Left: every order of FastExp in its worst case, a step in one plane at the
  largest norm that uses this order, and the closed forms of docs/optimizer.md.
  Right: Adam on random gradients at n = 64 with every retraction.
  """
  import matplotlib.pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
  t = np.arange(1, 1001)
  for i, (name, (thresholds, angle, drift)) in enumerate(ORDERS.items()):
    tx = orthogonal(
      optax.sgd(1.0), retraction_period=None, thresholds=thresholds
    )
    turn = jnp.zeros((8, 8)).at[0, 1].set(angle).at[1, 0].set(-angle)
    curve = follow_drift(tx, jnp.eye(8), lambda x, _, w=turn: -x @ w, t)
    left.loglog(t, np.maximum(list(curve), 1e-8), f'C{i}', label=name)
    if drift:
      closed = np.abs((1 + drift(angle)) ** t - 1)
      left.loglog(t, closed, f'C{i}--', linewidth=3, alpha=0.4)
  left.set(title='Worst case of each order (dashed: closed form)')

  cases = {
    'never': (None, 'newton_schulz'),
    'Newton–Schulz every 100': (100, 'newton_schulz'),
    'SVD every 100': (100, 'svd'),
  }
  for name, (period, method) in cases.items():
    tx = orthogonal(
      optax.adam(1e-3), retraction_period=period, retraction=method
    )
    curve = follow_drift(
      tx, jnp.eye(64), lambda x, key: jax.random.normal(key, x.shape), t
    )
    right.loglog(t, np.maximum(list(curve), 1e-8), label=name)
  right.set(title='Adam at 1e-3, n = 64, retracted')

  left.set(ylabel='‖XᵀX − I‖₂', ylim=(3e-8, 30))
  for axes in (left, right):
    axes.set(xlabel='steps')
    axes.legend()
    axes.grid(alpha=0.3)
  figure.tight_layout()
  plt.rcParams['svg.hashsalt'] = 'drift'
  figure.savefig('docs/drift.svg', metadata={'Date': None})


def measure_precision(n, learning_rate, steps=100):
  """Prints the defect for several precisions of the step's products.

  Emulates tensor cores: operands are rounded, sums are float32.
  """
  bits = {'float32': None, 'tf32': 10, 'bfloat16': 7}
  start = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (n, n)))[0]
  key = jax.random.key(2)
  rows = []
  for name, mantissa in bits.items():

    def low(x, y, mantissa=mantissa):
      if mantissa is not None:
        x, y = (lax.reduce_precision(z, 8, mantissa) for z in (x, y))
      return mm(x, y)

    def body(t, x, low=low):
      noise = jax.random.normal(jax.random.fold_in(key, t), (n, n))
      delta = learning_rate / 5 * skew(jnp.sign(noise - noise.T))
      d2 = low(delta, delta)
      return x + low(x, delta + d2 / 2 + low(d2, delta / 6 + d2 / 24))

    go = jax.jit(lambda x, body=body: lax.fori_loop(0, steps, body, x))
    drifted = go(start)
    errors = map(orthogonality_error, (drifted, polar_retract(drifted)))
    rows.append((name, *(f'{float(e):.1e}' for e in errors)))
  print(f'n={n}, entries ±{learning_rate / 5:g}, {steps} steps, emulated.')
  table(("step's operands", 'defect', 'after one retraction'), rows)


# -- Convergence --------------------------------------------------------------


def measure_convergence(args):
  """Prints a table for each problem, with the methods that `only` matches."""
  seeds = range(args.first_seed, args.first_seed + args.seeds)
  for problem in args.problems:
    make = functools.partial(convergence.PROBLEMS[problem], args.n)
    instances = [make(seed) for seed in seeds]
    rows = (
      (lift, rule, *convergence.shortest_run(method, instances, args))
      for (lift, rule), method in convergence.METHODS.items()
      if re.search(args.only, f'{lift}, {rule}')
    )
    print(
      f'{problem}, n={args.n}: gap {args.gap:g}, seeds {seeds[0]} to '
      f'{seeds[-1]}, lengths {args.horizons[0]} to {args.horizons[-1]}, '
      f'{len(args.rates)} rates {args.rates[0]:.2g} to {args.rates[-1]:.2g}.'
    )
    table(('step', 'inner rule', 'shortest run', 'rate'), rows)


def main():
  """Parses the command line and runs the measurements."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--what',
    choices=('time', 'drift', 'plot', 'precision', 'converge'),
    required=True,
  )
  parser.add_argument('--sizes', type=int, nargs='+', default=(256, 512, 1024))
  parser.add_argument('--stack', type=int, default=8)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--n', type=int, default=256)
  parser.add_argument('--learning_rate', type=float, default=1e-3)
  parser.add_argument(
    '--horizons', type=int, nargs='+', default=tuple(range(20, 121, 4))
  )
  # Five a decade.
  rates = tuple(10 ** (k / 5) for k in range(-6, 6))
  parser.add_argument('--rates', type=float, nargs='+', default=rates)
  parser.add_argument('--gap', type=float, default=1e-5)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--first_seed', type=int, default=0)
  problems = list(convergence.PROBLEMS)
  parser.add_argument('--problems', nargs='+', default=problems)
  parser.add_argument('--only', default='', help='expression in a row name')
  args = parser.parse_args()
  device = jax.devices()[0].device_kind
  print(
    f'jax {jax.__version__}, optax {optax.__version__}, {device} '
    f'({platform.machine()}, {os.cpu_count()} cores)\n'
  )
  if args.what == 'precision':
    measure_precision(args.n, args.learning_rate)
  elif args.what == 'time':
    for n in args.sizes:
      rows = measure_time(n, args.stack, args.repeats, args.only)
      table(('n', f'step of [{args.stack}, n, n]', 'ms', '/ product'), rows)
  elif args.what == 'plot':
    plot_drift()
  elif args.what == 'drift':
    measure_drift(args.n, args.learning_rate)
  else:
    measure_convergence(args)


if __name__ == '__main__':
  main()
