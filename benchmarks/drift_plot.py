"""Draws docs/drift.svg: orthogonality error against steps.

    python -m benchmarks.drift_plot

Left: every order of FastExp in its worst case, a step in one plane at the
largest norm that uses this order, and the closed forms of docs/optimizer.md.
Right: Adam on random gradients at n = 64 with every retraction.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error

# Order → (thresholds that force it, angle t, |p(it)|² − 1).
ORDERS = {
  'order 2': ((9, 9, 9), 0.05 / 2**0.5, lambda t: t**4 / 4),
  'order 3': ((0, 9, 9), 0.25 / 2**0.5, lambda t: -(t**4) / 12 + t**6 / 36),
  'order 4': ((0, 0, 9), 1 / 2**0.5, lambda t: -(t**6) / 72 + t**8 / 576),
  'exact': ((0, 0, 0), 1 / 2**0.5, None),
}


def errors(tx, x, grad_fn, steps):
  """Returns the orthogonality error after each of `steps` updates."""

  def body(carry, key):
    x, state = carry
    updates, state = tx.update(grad_fn(x, key), state, x)
    x = optax.apply_updates(x, updates)
    return (x, state), orthogonality_error(x)

  keys = jax.random.split(jax.random.key(0), steps)
  carry = x, tx.init(x)
  return jax.jit(lambda c: jax.lax.scan(body, c, keys)[1])(carry)


def main():
  """Runs the steps and writes the figure."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
  steps = 1000
  t = np.arange(1, steps + 1)
  for i, (name, (thresholds, angle, drift)) in enumerate(ORDERS.items()):
    tx = orthogonal(
      optax.sgd(1.0), retraction_period=None, thresholds=thresholds
    )
    turn = jnp.zeros((8, 8)).at[0, 1].set(angle).at[1, 0].set(-angle)
    curve = errors(tx, jnp.eye(8), lambda x, _, w=turn: -x @ w, steps)
    left.loglog(t, np.maximum(curve, 1e-8), f'C{i}', label=name)
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
    curve = errors(
      tx, jnp.eye(64), lambda x, key: jax.random.normal(key, x.shape), steps
    )
    right.loglog(t, np.maximum(curve, 1e-8), label=name)
  right.set(title='Adam at 1e-3, n = 64, retracted')

  left.set(ylabel='‖XᵀX − I‖₂', ylim=(3e-8, 30))
  for axes in (left, right):
    axes.set(xlabel='steps')
    axes.legend()
    axes.grid(alpha=0.3)
  figure.tight_layout()
  plt.rcParams['svg.hashsalt'] = 'drift'
  figure.savefig('docs/drift.svg', metadata={'Date': None})


if __name__ == '__main__':
  main()
