"""Trains orthogonal layers in an equinox model.

    python examples/equinox_orthogonal.py

A 1-Lipschitz network of orthogonal layers and absolute values fits a rotated
distance. Equinox models are trees of arrays, which `lipnext_jax.optim` takes as
they are. Needs the package equinox.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonal_labels
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import polar_retract
from lipnext_jax.optim import slow_params

# equinox names a leaf 'layers/0/weight'.
RULES = ((r'weight$', 'orthogonal'), (r'bias$', 'euclidean'))


class Orthogonal(eqx.Module):
  """The layer x ↦ W x + b; W [out, in] has orthonormal columns or rows."""

  weight: jax.Array
  bias: jax.Array

  def __init__(self, din: int, dout: int, key: jax.Array):
    self.weight = polar_retract(jax.random.normal(key, (dout, din)))
    self.bias = jnp.zeros(dout)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [in] to [out]."""
    return self.weight @ x + self.bias


class Net(eqx.Module):
  """A 1-Lipschitz function from [2] to a scalar."""

  layers: list[Orthogonal]

  def __init__(self, width: int, key: jax.Array):
    sizes = (2, width), (width, width), (width, 1)
    keys = jax.random.split(key, len(sizes))
    self.layers = [
      Orthogonal(*size, k) for size, k in zip(sizes, keys, strict=True)
    ]

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps a point [2] to a scalar."""
    for layer in self.layers[:-1]:
      x = jnp.abs(layer(x))
    return self.layers[-1](x)[0]


def make_batch(key, batch=256):
  """Returns points [batch, 2] and |x₀ + x₁|/√2 − 0.2, which is 1-Lipschitz."""
  x = jax.random.uniform(key, (batch, 2), minval=-1, maxval=1)
  return x, jnp.abs(x[:, 0] + x[:, 1]) / jnp.sqrt(2) - 0.2


def make_optimizer(learning_rate):
  """Returns Adam, for weights on the manifold with lookahead."""
  return optax.partition(
    {
      'orthogonal': orthogonal(optax.adam, learning_rate, lookahead_period=6),
      'euclidean': optax.adam(learning_rate),
    },
    lambda params: orthogonal_labels(params, RULES),
  )


def train(steps, width=8, learning_rate=1e-2, seed=0):
  """Returns the model with its slow weights, and its root mean square error."""
  model = Net(width, jax.random.key(seed))
  tx = make_optimizer(learning_rate)
  state = tx.init(model)

  def loss_fn(model, x, y):
    return jnp.mean(jnp.square(jax.vmap(model)(x) - y))

  @jax.jit
  def step(model, state, key):
    grads = jax.grad(loss_fn)(model, *make_batch(key))
    updates, state = tx.update(grads, state, model)
    return eqx.apply_updates(model, updates), state

  keys = jax.random.split(jax.random.key(seed + 1), steps + 1)
  for key in keys[1:]:
    model, state = step(model, state, key)
  model = slow_params(state, model)
  return model, jnp.sqrt(loss_fn(model, *make_batch(keys[0])))


def main():
  """Trains, then prints the error and the worst orthogonality error."""
  model, error = train(600)
  worst = max(
    float(orthogonality_error(layer.weight)) for layer in model.layers
  )
  print(f'error {error:.3f}, worst orthogonality error {worst:.1e}')


if __name__ == '__main__':
  main()
