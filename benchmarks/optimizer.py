"""What an orthogonal step costs, how far it drifts, how fast it converges.

    python -m benchmarks.optimizer --what time --sizes 256 512 1024
    python -m benchmarks.optimizer --what drift
    python -m benchmarks.optimizer --what precision --n 1024
    python -m benchmarks.optimizer --what converge

Needs jax, optax and numpy. Prints Markdown tables; docs/optimizer.md has the
recorded ones. Rivals: the paper's algorithm written down literally, Cayley and
QR retractions with the same inner Adam, and the two published optimizers that
use them (Cayley Adam: J. Li, L. Fuxin, S. Todorovic, ICLR 2020; Riemannian
Adam with a QR retraction: G. Bécigneul, O. Ganea, ICLR 2019, as in geoopt).
"""

import argparse
import os
import platform
import tempfile
import time

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import polar_retract
from lipnext_jax.optim import scheduled_nadam

HIGHEST = lax.Precision.HIGHEST


def mm(x, y):
  """A product in full float32."""
  return jnp.matmul(x, y, precision=HIGHEST)


def skew(a):
  """The skew-symmetric part of [..., n, n]."""
  return (a - jnp.swapaxes(a, -1, -2)) / 2


def table(head, rows):
  """Prints a Markdown table."""
  print('| ' + ' | '.join(head) + ' |')
  print('|' + '---|' * len(head))
  for row in rows:
    print('| ' + ' | '.join(map(str, row)) + ' |', flush=True)
  print(flush=True)


# -- Rivals: the same tangent and inner rule, another step --------------------


def cayley(x, delta):
  """X (I − Δ/2)⁻¹ (I + Δ/2)."""
  eye = jnp.eye(delta.shape[-1])
  return mm(x, jnp.linalg.solve(eye - delta / 2, eye + delta / 2))


def qr(x, delta):
  """The Q of X (I + Δ), signs fixed."""
  q, r = jnp.linalg.qr(x + mm(x, delta))
  return q * jnp.sign(jnp.diagonal(r))[None]


def literal(x, delta):
  """The paper's FastExp as printed: separate powers, then X·F."""
  eye = jnp.eye(delta.shape[-1])

  def order2(a):
    return eye + a + mm(a, a) / 2

  def order3(a):
    return order2(a) + mm(mm(a, a), a) / 6

  def order4(a):
    return order3(a) + mm(mm(mm(a, a), a), a) / 24

  norm = jnp.linalg.norm(delta)
  branch = sum((norm >= t).astype(jnp.int32) for t in (0.05, 0.25, 1.0))

  def exact(a):
    return jax.scipy.linalg.expm(a)

  return mm(x, lax.switch(branch, [order2, order3, order4, exact], delta))


def lifted(step, inner):
  """`inner` lifted with x ← step(x, Δ), matrix by matrix in Python."""

  def init(x):
    return inner.init(x)

  def update(g, state, x):
    delta, state = inner.update(skew(mm(jnp.swapaxes(x, -1, -2), g)), state)
    matrices = zip(
      x.reshape(-1, *x.shape[-2:]),
      delta.reshape(-1, *delta.shape[-2:]),
      strict=True,
    )
    new = jnp.stack([step(*pair) for pair in matrices]).reshape(x.shape)
    return new - x, state

  return optax.GradientTransformation(init, update)


def cayley_adam(learning_rate, b1=0.9, b2=0.99, iterations=2, q=0.5):
  """Cayley Adam (ICLR 2020, algorithm 2); scaled so that steps are entrywise.

  The published second moment is the scalar ‖G‖²; here it is the mean square
  of the entries, which only rescales the learning rate by n.
  """

  def init(x):
    return jnp.zeros([], jnp.int32), jnp.zeros_like(x), jnp.ones([])

  def update(g, state, x):
    count, m, v = state
    count = count + 1
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * jnp.mean(jnp.square(g))
    scale = (1 - b1**count) * jnp.sqrt(v / (1 - b2**count) + 1e-8)
    w = mm(m, x.T) - mm(x, mm(x.T, mm(m, x.T))) / 2
    w = (w - w.T) / scale
    m = mm(w, x) * scale
    rate = jnp.minimum(learning_rate, 2 * q / (jnp.linalg.norm(w) + 1e-8))
    y = x - rate * mm(w, x)
    for _ in range(iterations):
      y = x - rate / 2 * mm(w, x + y)
    return y - x, (count, m, v)

  return optax.GradientTransformation(init, update)


def riemannian_adam(learning_rate, b1=0.9, b2=0.999):
  """Riemannian Adam on the Stiefel manifold with a QR retraction (geoopt)."""

  def project(x, u):
    xu = mm(x.T, u)
    return u - mm(x, xu + xu.T) / 2

  def init(x):
    return jnp.zeros([], jnp.int32), jnp.zeros_like(x), jnp.zeros([])

  def update(g, state, x):
    count, m, v = state
    count = count + 1
    g = project(x, g)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * jnp.mean(jnp.square(g))
    denominator = jnp.sqrt(v / (1 - b2**count)) + 1e-8
    u = -learning_rate * (m / (1 - b1**count)) / denominator
    q_factor, r = jnp.linalg.qr(x + u)
    y = q_factor * jnp.sign(jnp.diagonal(r))[None]
    return y - x, (count, project(y, m), v)

  return optax.GradientTransformation(init, update)


# -- Time ---------------------------------------------------------------------


def seconds(fn, *args, repeats):
  """Wall time of a compiled call: the fastest, others share the machine."""
  jax.block_until_ready(fn(*args))
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - begin)
  return min(times)


def measure_time(sizes, stack, repeats):
  """One whole step, inner Adam included, over one batched product."""
  bands = {'order 2': 0.04, 'order 3': 0.2, 'order 4': 0.8, 'exact': 2.0}
  for n in sizes:
    rows: list[tuple] = []
    g = jax.random.normal(jax.random.key(0), (stack, n, n))
    x = jnp.broadcast_to(jnp.eye(n)[None], g.shape) + 0
    one = seconds(jax.jit(mm), x, g, repeats=repeats)

    def row(name, tx, x=x, g=g, one=one, n=n, rows=rows):
      state = jax.jit(tx.init)(x)
      # Donated in training; kept here so that calls can be repeated.
      took = seconds(jax.jit(tx.update), g, state, x, repeats=repeats)
      rows.append((n, name, f'{1e3 * took:.1f}', f'{took / one:.2f}'))

    rows.append((n, 'one batched product', f'{1e3 * one:.1f}', '1'))
    for band, norm in bands.items():
      # Adam's first steps have entries ±lr: ‖Δ‖_F is lr·n.
      row(f'ours, {band}', orthogonal(optax.adam(norm / n)))
    row(
      'ours, order 4, lookahead',
      orthogonal(optax.adam(0.8 / n), lookahead_period=6),
    )
    for band, norm in bands.items():
      row(f'literal, {band}', lifted(literal, optax.adam(norm / n)))
    row('Cayley', lifted(cayley, optax.adam(0.8 / n)))
    row('QR', lifted(qr, optax.adam(0.8 / n)))
    for method in ('newton_schulz', 'svd'):
      fn = jax.jit(lambda x, m=method: polar_retract(x, m))
      took = seconds(fn, x + 1e-8 * g, repeats=repeats)
      name = f'(one retraction, {method})'
      rows.append((n, name, f'{1e3 * took:.1f}', f'{took / one:.2f}'))
    table(('n', f'step of [{stack}, n, n]', 'ms', '/ product'), rows)


# -- Drift --------------------------------------------------------------------


def measure_drift(n, learning_rate):
  """Orthogonality error after 1,000 and 10,000 steps of Adam."""
  x = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (n, n)))[0]

  def runner(tx, same):
    """(x, state, key, steps) → (x, state), gradients fresh or all the same."""

    def body(_, carry):
      x, state, key = carry
      key, sub = jax.random.split(key)
      # The gradient of ⟨X, X·W⟩-like problems: fixed in the algebra.
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
      with tempfile.TemporaryDirectory() as folder:  # Saved and restored.
        leaves, treedef = jax.tree.flatten(carry[:2])
        path = os.path.join(folder, 'state.npz')
        np.savez(path, *leaves)
        with np.load(path) as saved:
          leaves = [jnp.asarray(saved[k]) for k in saved.files]
        restored = jax.tree.unflatten(treedef, leaves)
      carry = go(*restored, carry[2], 8999 * calls)
      before = error(carry[0])  # The longest without a retraction.
      carry = go(*carry, calls)
      gradients = 'all the same' if same else 'fresh'
      rows.append((name, gradients, early, before, error(carry[0])))
  print(f'n={n}, Adam, learning rate {learning_rate:g}; restored after 1,000.')
  table(('', 'gradients', '1,000 steps', '9,999 steps', '10,000 steps'), rows)


def measure_precision(n, learning_rate, steps=100):
  """The defect by the operands' precision in the step's products.

  Emulated: operands are rounded, sums are float32, as tensor cores do it.
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


def procrustes(n, seed):
  """min ‖XA − B‖²/2 over X ∈ O(n), in the component of the start."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(n, 2 * n)) / np.sqrt(2 * n)
  target, start = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
  b = target @ a + 0.1 * rng.normal(size=a.shape) / np.sqrt(2 * n)
  u, _, vt = np.linalg.svd(b @ a.T)
  sign = np.sign(np.linalg.det(u @ vt))
  # O(n) has two components and no step leaves its own (Kabsch's remark).
  if np.sign(np.linalg.det(start)) != sign:
    start[0] *= -1
  best = u @ vt
  value = 0.5 * np.sum((best @ a - b) ** 2)

  def loss(x, data):
    a, b = data
    return 0.5 * jnp.sum(jnp.square(mm(x, a) - b))

  return loss, (jnp.float32(a), jnp.float32(b)), jnp.float32(start), value


def eigenspace(n, seed):
  """min −tr(D XᵀSX) over X ∈ O(n): the eigenvectors of S, in order."""
  rng = np.random.default_rng(seed)
  q, start = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
  weights = np.linspace(1, 0, n)
  s = (q * np.linspace(1, 0, n)) @ q.T

  def loss(x, data):
    s, weights = data
    return n - jnp.sum(jnp.sum(x * mm(s, x), axis=0) * weights)

  data = jnp.float32(s), jnp.float32(weights)
  return loss, data, jnp.float32(start), n - np.sum(weights**2)


def joint_diagonalisation(n, seed, count=8):
  """min 1 + Σ off(XᵀS_kX)/Σ‖S_k‖²: common eigenvectors of `count` matrices."""
  rng = np.random.default_rng(seed)
  q, start = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
  s = np.einsum('ij,kj,lj->kil', q, rng.normal(size=(count, n)), q)

  def loss(x, s):
    rotated = mm(mm(x.T[None], s), x[None])
    diagonal = jnp.diagonal(rotated, axis1=1, axis2=2)
    return 1 + jnp.sum(jnp.square(rotated)) - jnp.sum(jnp.square(diagonal))

  data = jnp.float32(s / np.linalg.norm(s))
  return loss, data, jnp.float32(start), 1.0


METHODS = {
  'ours, NAdam': lambda lr: orthogonal(scheduled_nadam(lr)),
  'ours, Adam': lambda lr: orthogonal(optax.adam(lr)),
  'ours, Adam, lookahead 6': lambda lr: orthogonal(
    optax.adam(lr), lookahead_period=6
  ),
  'Cayley, lifted NAdam': lambda lr: lifted(cayley, scheduled_nadam(lr)),
  'Cayley, lifted Adam': lambda lr: lifted(cayley, optax.adam(lr)),
  'QR, lifted NAdam': lambda lr: lifted(qr, scheduled_nadam(lr)),
  'QR, lifted Adam': lambda lr: lifted(qr, optax.adam(lr)),
  'Cayley Adam': cayley_adam,
  'QR Riemannian Adam': riemannian_adam,
}
RATES = (1e-2, 3e-2, 1e-1, 3e-1)


def measure_convergence(problems, horizons, gap, seeds):
  """The shortest run that ends within `gap`, each optimizer at its best rate.

  The rate decays to zero over every run (cosine): a run that may take longer
  decays later, so the length of the run is what there is to compare. It has
  to suffice for all seeds at one rate.
  """
  rows = []
  for title, make in problems.items():
    instances = [make(seed) for seed in range(seeds)]
    for name, method in METHODS.items():
      descend = descent(method, instances[0][0])
      found = f'not in {horizons[-1]}'
      for steps in horizons:
        ends = []
        for rate in RATES:
          values = [
            float(descend(x, d, rate, steps)) for _, d, x, _ in instances
          ]
          gaps = [
            abs(v / best - 1)
            for v, (*_, best) in zip(values, instances, strict=True)
          ]
          ends.append((np.nan_to_num(max(gaps), nan=np.inf), rate))
        end, rate = min(ends)
        if end <= gap:
          found = str(steps)
          break
      rows.append((title, name, found, f'{rate:g}', f'{end:.0e}'))
  print(f'Gap {gap:g}, {seeds} seeds; rates {RATES}; lengths {horizons}.')
  table(('problem', 'optimizer', 'steps', 'best rate', 'gap, worst'), rows)


def descent(method, loss):
  """(x, data, rate, steps) → the loss after `steps` steps."""

  @jax.jit
  def go(x, data, rate, steps):
    def body(t, carry):
      x, state = carry
      g = jax.grad(loss)(x, data)
      decay = (1 + jnp.cos(jnp.pi * t / steps)) / 2
      # The rate is no part of any state: build the rule with today's.
      updates, state = method(rate * decay).update(g, state, x)
      return optax.apply_updates(x, updates), state

    x, _ = lax.fori_loop(0, steps, body, (x, method(rate).init(x)))
    return loss(x, data)

  return go


def main():
  """Parses the command line and runs the measurements."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--what', choices=('time', 'drift', 'precision', 'converge'), required=True
  )
  parser.add_argument('--sizes', type=int, nargs='+', default=(256, 512, 1024))
  parser.add_argument('--stack', type=int, default=8)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--n', type=int, default=256)
  parser.add_argument('--learning_rate', type=float, default=1e-3)
  parser.add_argument(
    '--horizons', type=int, nargs='+', default=tuple(range(40, 201, 10))
  )
  parser.add_argument('--gap', type=float, default=1e-5)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--problems', nargs='+', default=list(PROBLEMS))
  args = parser.parse_args()
  device = jax.devices()[0].device_kind
  print(
    f'jax {jax.__version__}, optax {optax.__version__}, {device} '
    f'({platform.machine()}, {os.cpu_count()} cores)\n'
  )
  if args.what == 'precision':
    measure_precision(args.n, args.learning_rate)
  elif args.what == 'time':
    measure_time(args.sizes, args.stack, args.repeats)
  elif args.what == 'drift':
    measure_drift(args.n, args.learning_rate)
  else:
    problems = {
      f'{name}, n={args.n}': lambda seed, make=PROBLEMS[name]: make(
        args.n, seed
      )
      for name in args.problems
    }
    measure_convergence(problems, tuple(args.horizons), args.gap, args.seeds)


PROBLEMS = {
  'Procrustes': procrustes,
  'eigenspace': eigenspace,
  'joint diagonalisation': joint_diagonalisation,
}


if __name__ == '__main__':
  main()
