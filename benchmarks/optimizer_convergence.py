"""Counts the steps to the optimum: problems, optimizers and the counting.

    python -m benchmarks.optimizer --what converge

Combines every map of a step (our exponential and projection, Cayley, QR) with
every inner rule, and adds published optimizers. All choose from the same
learning rates.
"""

import bisect
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import optimizer_rivals as rivals
from benchmarks.optimizer_rivals import mm
from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import scheduled_nadam

# -- Problems -----------------------------------------------------------------


def procrustes(n, seed):
  """Makes min ‖XA − B‖²/2 over X ∈ O(n), in the component of the start."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(n, 2 * n)) / np.sqrt(2 * n)
  target, start = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
  b = target @ a + 0.1 * rng.normal(size=a.shape) / np.sqrt(2 * n)
  u, _, vt = np.linalg.svd(b @ a.T)
  sign = np.sign(np.linalg.det(u @ vt))
  # No step leaves its component of O(n).
  if np.sign(np.linalg.det(start)) != sign:
    start[0] *= -1
  best = u @ vt
  value = 0.5 * np.sum((best @ a - b) ** 2)
  # With A = LQ, the same function takes products of half the size.
  q, r = np.linalg.qr(a.T)
  rest = 0.5 * (np.sum(b**2) - np.sum((b @ q) ** 2))

  def loss(x, data):
    lower, b, rest = data
    return 0.5 * jnp.sum(jnp.square(mm(x, lower) - b)) + rest

  data = jnp.float32(r.T), jnp.float32(b @ q), jnp.float32(rest)
  return loss, data, jnp.float32(start), value


def eigenspace(n, seed):
  """Makes min −tr(D XᵀSX) over X ∈ O(n): the eigenvectors of S, in order."""
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
  """Makes min 1 + Σ off(XᵀS_kX)/Σ‖S_k‖²: the eigenvectors that S_k share."""
  rng = np.random.default_rng(seed)
  q, start = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
  s = np.einsum('ij,kj,lj->kil', q, rng.normal(size=(count, n)), q)

  def loss(x, s):
    rotated = mm(mm(x.T[None], s), x[None])
    diagonal = jnp.diagonal(rotated, axis1=1, axis2=2)
    return 1 + jnp.sum(jnp.square(rotated)) - jnp.sum(jnp.square(diagonal))

  data = jnp.float32(s / np.linalg.norm(s))
  return loss, data, jnp.float32(start), 1.0


PROBLEMS = {
  'Procrustes': procrustes,
  'eigenspace': eigenspace,
  'joint diagonalisation': joint_diagonalisation,
}

# -- Optimizers: learning rate → transformation -------------------------------

INNER = {
  'SGD': optax.sgd,
  'momentum 0.5': lambda lr: optax.sgd(lr, momentum=0.5),
  'Nesterov 0.9': lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
  'Adam': optax.adam,
  'NAdam': scheduled_nadam,
}


def ours(rule, large_steps='exponential'):
  """Returns `orthogonal`, retracted every 10 steps.

  At rates this large a truncated step loses up to 2e-3 of orthogonality, and
  most runs here are shorter than the default period of 100.
  """
  return orthogonal(rule, large_steps=large_steps, retraction_period=10)


LIFTS = {
  'ours': ours,
  'ours, projected': lambda rule: ours(rule, 'projection'),
  'Cayley, in our lift': lambda rule: rivals.lifted(rivals.cayley, rule),
  'QR, in our lift': lambda rule: rivals.lifted(rivals.qr, rule),
}
PUBLISHED = {
  (name, f'momentum {m:g}'): functools.partial(sgd, momentum=m)
  for name, sgd in (
    ('Cayley SGD', rivals.cayley_sgd),
    ('QR, Riemannian SGD', rivals.riemannian_sgd),
  )
  for m in (0, 0.5, 0.9)
} | {
  ('Cayley Adam', 'its own'): rivals.cayley_adam,
  ('QR, Riemannian Adam', 'its own'): rivals.riemannian_adam,
}
METHODS = {
  (lift, rule): lambda lr, lift=lift, rule=rule: LIFTS[lift](INNER[rule](lr))
  for lift in LIFTS
  for rule in INNER
} | PUBLISHED

# -- Counting steps -----------------------------------------------------------


def descent(method, loss):
  """Jits (x, data, rate, steps) → the loss after `steps` steps.

  The rate follows a cosine to zero over the run.
  """

  @jax.jit
  def go(x, data, rate, steps):
    def body(t, carry):
      x, state = carry
      g = jax.grad(loss)(x, data)
      decay = (1 + jnp.cos(jnp.pi * t / steps)) / 2
      # States do not hold the rate, so the rule can be made anew in every step.
      updates, state = method(rate * decay).update(g, state, x)
      return optax.apply_updates(x, updates), state

    x, _ = lax.fori_loop(0, steps, body, (x, method(rate).init(x)))
    return loss(x, data)

  return go


def shortest_run(method, instances, args):
  """Finds the shortest run of a method that ends within `args.gap`.

  A run has one rate for all instances, which decays to zero over its length.
  The length is found by bisection over `args.horizons`, ascending, under the
  assumption that longer runs end within the gap, too.

  Returns:
    Cells of a row: the length and the rate.
  """
  descend = descent(method, instances[0][0])

  def ends(steps, rate):
    # `<=` refuses nan.
    return all(
      abs(float(descend(x, data, rate, steps)) / best - 1) <= args.gap
      for _, data, x, best in instances
    )

  def rate_for(steps):
    return next((rate for rate in args.rates if ends(steps, rate)), None)

  lengths = args.horizons
  index = bisect.bisect_left(
    lengths, True, key=lambda steps: rate_for(steps) is not None
  )
  if index == len(lengths):
    return f'> {lengths[-1]}', ''
  return lengths[index], f'{rate_for(lengths[index]):.2g}'
