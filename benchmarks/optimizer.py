"""Time, drift, precision and convergence of orthogonal steps.

    python -m benchmarks.optimizer --what time --sizes 256 512 1024
    python -m benchmarks.optimizer --what drift
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
import tempfile

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


def measure_drift(n, learning_rate):
  """Prints the orthogonality error after 1,000 and 10,000 steps of Adam."""
  x = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (n, n)))[0]

  def runner(tx, same):
    """Jits (x, state, key, steps) → (x, state, key) for a kind of gradient."""

    def body(_, carry):
      x, state, key = carry
      key, sub = jax.random.split(key)
      # A gradient XW is the same in the algebra at every X.
      w = jax.random.normal(jax.random.key(2) if same else sub, x.shape)
      updates, state = tx.update(mm(x, w), state, x)
      return optax.apply_updates(x, updates), state, key

    return jax.jit(
      lambda x, state, key, steps: lax.fori_loop(
        0, steps, body, (x, state, key)
      )
    )

  def error(x):
    return f'{float(orthogonality_error(x)):.1e}'

  rows = []
  adam = optax.adam(learning_rate)
  cases = {
    'never retracted': (orthogonal(adam, retraction_period=None), 1),
    'retracted every 100': (orthogonal(adam), 1),
    'with lookahead 6': (orthogonal(adam, lookahead_period=6), 1),
    'in MultiSteps(2)': (optax.MultiSteps(orthogonal(adam), 2), 2),
  }
  for name, (tx, calls) in cases.items():
    for same in (False, True):
      go = runner(tx, same)
      carry = go(x, tx.init(x), jax.random.key(3), 1000 * calls)
      early = error(carry[0])
      with tempfile.TemporaryDirectory() as folder:  # Saves and restores.
        leaves, treedef = jax.tree.flatten(carry[:2])
        path = os.path.join(folder, 'state.npz')
        np.savez(path, *leaves)
        with np.load(path) as saved:
          leaves = [jnp.asarray(saved[k]) for k in saved.files]
        restored = jax.tree.unflatten(treedef, leaves)
      carry = go(*restored, carry[2], 8999 * calls)
      before = error(carry[0])  # 99 steps after the last retraction.
      carry = go(*carry, calls)
      gradients = 'all the same' if same else 'fresh'
      rows.append((name, gradients, early, before, error(carry[0])))
  print(f'n={n}, Adam, learning rate {learning_rate:g}; restored after 1,000.')
  table(('', 'gradients', '1,000 steps', '9,999 steps', '10,000 steps'), rows)


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


def show_convergence(problems, n, only, horizons, rates, gap, seeds):
  """Prints a table for each problem, with the methods that `only` matches."""
  methods = [m for m in convergence.METHODS if re.search(only, ', '.join(m))]
  for name in problems:
    problem = convergence.PROBLEMS[name]
    rows = convergence.measure_convergence(
      lambda seed, problem=problem: problem(n, seed),
      methods,
      horizons,
      rates,
      gap,
      seeds,
    )
    print(
      f'{name}, n={n}: gap {gap:g}, seeds {seeds[0]} to {seeds[-1]}, '
      f'lengths {horizons[0]} to {horizons[-1]}, '
      f'{len(rates)} rates {rates[0]:.2g} to {rates[-1]:.2g}.'
    )
    head = ('step', 'inner rule', 'shortest run', 'rate')
    table(head, rows)


def main():
  """Parses the command line and runs the measurements."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--what',
    choices=('time', 'drift', 'precision', 'converge'),
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
  elif args.what == 'drift':
    measure_drift(args.n, args.learning_rate)
  else:
    show_convergence(
      args.problems,
      args.n,
      args.only,
      args.horizons,
      args.rates,
      args.gap,
      range(args.first_seed, args.first_seed + args.seeds),
    )


if __name__ == '__main__':
  main()
