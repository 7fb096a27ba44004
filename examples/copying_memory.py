"""Trains an orthogonal recurrent network on the copying-memory task.

    python examples/copying_memory.py --delay 100 --steps 1000

The network repeats ten symbols after a long delay (M. Arjovsky, A. Shah,
Y. Bengio, "Unitary Evolution Recurrent Neural Networks", ICML 2016, §4.1). An
orthogonal recurrent matrix neither explodes nor forgets. `orthogonal(adam)`
trains it, and plain Adam everything else. Guessing costs
10·log(8)/(delay + 20) nats a step: 0.173 at delay 100.
"""

import argparse
import math

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonality_error

SYMBOLS, BLANK, GO, CLASSES = 8, 8, 9, 10


def make_batch(key, batch, delay, length=10):
  """Returns inputs and targets [batch, delay + 2·length] int32."""
  data = jax.random.randint(key, (batch, length), 0, SYMBOLS)
  wait = jnp.full((batch, delay - 1), BLANK)
  go = jnp.full((batch, 1), GO)
  blanks = jnp.full((batch, length), BLANK)
  inputs = jnp.concatenate([data, wait, go, blanks], axis=1)
  targets = jnp.concatenate([blanks, wait, blanks[:, :1], data], axis=1)
  return inputs, targets


def init_params(key, width):
  """Returns parameters with a Haar-random recurrent matrix R."""
  keys = jax.random.split(key, 3)
  gaussian = jax.random.normal(keys[0], (width, width))
  return {
    'R': jnp.linalg.qr(gaussian)[0],
    'embed': jax.random.normal(keys[1], (CLASSES, width)) / math.sqrt(width),
    'bias': jnp.zeros(width),
    'out': jax.random.normal(keys[2], (width, CLASSES)) / math.sqrt(width),
  }


def modrelu(x, bias):
  """Returns sign(x)·max(|x| + bias, 0), an isometry if the bias is zero."""
  return jnp.sign(x) * jax.nn.relu(jnp.abs(x) + bias)


def loss_fn(params, inputs, targets):
  """Returns the mean cross-entropy over batch and time."""
  bias = params['bias'][None]

  def step(h, token):
    h = modrelu(h @ params['R'].T + params['embed'][token], bias)
    return h, h @ params['out']

  h = jnp.zeros((inputs.shape[0], params['R'].shape[0]))
  _, logits = lax.scan(step, h, inputs.T)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.T)
  return losses.mean()


def make_optimizer(learning_rate):
  """Returns Adam, for R on the manifold."""
  return optax.partition(
    {
      'manifold': orthogonal(optax.adam(learning_rate)),
      'plain': optax.adam(10 * learning_rate),
    },
    {'R': 'manifold', 'embed': 'plain', 'bias': 'plain', 'out': 'plain'},
  )


def train(delay, steps, width=128, batch=64, learning_rate=2e-4, seed=0):
  """Returns the parameters and the loss of every step, [steps]."""
  key, init_key = jax.random.split(jax.random.key(seed))
  params = init_params(init_key, width)
  tx = make_optimizer(learning_rate)

  def body(carry, key):
    params, state = carry
    inputs, targets = make_batch(key, batch, delay)
    loss, grads = jax.value_and_grad(loss_fn)(params, inputs, targets)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  carry = params, tx.init(params)
  (params, _), losses = jax.jit(lambda c, k: lax.scan(body, c, k))(
    carry, jax.random.split(key, steps)
  )
  return params, losses


def main():
  """Trains, then prints the losses and the orthogonality error."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--delay', type=int, default=100)
  parser.add_argument('--steps', type=int, default=1000)
  args = parser.parse_args()
  params, losses = train(args.delay, args.steps)
  print(f'guessing: {10 * math.log(SYMBOLS) / (args.delay + 20):.4f}')
  for step in range(0, args.steps, max(1, args.steps // 10)):
    print(f'step {step:5d}: {losses[step]:.4f}')
  print(f'the end: {losses[-1]:.6f}')
  print(f'orthogonality error of R: {orthogonality_error(params["R"]):.1e}')


if __name__ == '__main__':
  main()
