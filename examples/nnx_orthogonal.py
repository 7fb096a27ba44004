"""Trains orthogonal layers in a flax `nnx` model.

    python examples/nnx_orthogonal.py

A 1-Lipschitz network of orthogonal layers and absolute values tells two rings
apart. The layer takes a dozen lines; `lipnext_jax.optim` does the rest, through
`nnx.Optimizer` and `optax.partition`.
"""

import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from lipnext_jax.optim import orthogonal
from lipnext_jax.optim import orthogonal_labels
from lipnext_jax.optim import orthogonality_error
from lipnext_jax.optim import polar_retract
from lipnext_jax.optim import slow_params

# nnx names a leaf 'head/bias' or 'head/bias/value'.
RULES = ((r'/kernel\b', 'orthogonal'), (r'\b(bias|scale)\b', 'euclidean'))


class Orthogonal(nnx.Module):
  """The layer x ↦ x Qᵀ + b; Q [out, in] has orthonormal columns or rows."""

  def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
    gaussian = jax.random.normal(rngs.params(), (dout, din))
    self.kernel = nnx.Param(polar_retract(gaussian))
    self.bias = nnx.Param(jnp.zeros(dout))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, in] to [batch, out]."""
    return x @ self.kernel[...].T + self.bias[...][None]


class Net(nnx.Module):
  """A classifier that is 1-Lipschitz up to the trained scale of its logits."""

  def __init__(self, width: int, depth: int, *, rngs: nnx.Rngs):
    sizes = [2] + [width] * depth
    self.layers = nnx.List(
      [Orthogonal(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)]
    )
    self.head = Orthogonal(width, 1, rngs=rngs)
    self.scale = nnx.Param(jnp.ones([]))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps points [batch, 2] to logits [batch]."""
    for layer in self.layers:
      x = jnp.abs(layer(x))
    return self.scale[...] * self.head(x)[:, 0]


def make_batch(key, batch):
  """Returns points [batch, 2] on rings of radius 1 and 2, and their labels."""
  keys = jax.random.split(key, 3)
  label = jax.random.bernoulli(keys[0], shape=(batch,)).astype(jnp.float32)
  angle = jax.random.uniform(keys[1], (batch,), maxval=2 * jnp.pi)
  radius = 1 + label + 0.1 * jax.random.normal(keys[2], (batch,))
  circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
  return radius[:, None] * circle, label


def loss_fn(model, x, label):
  """Returns the mean cross-entropy."""
  return optax.sigmoid_binary_cross_entropy(model(x), label).mean()


def make_optimizer(learning_rate):
  """Returns Adam, for kernels on the manifold with lookahead."""
  return optax.partition(
    {
      'orthogonal': orthogonal(optax.adam(learning_rate), lookahead_period=6),
      'euclidean': optax.adam(learning_rate),
    },
    lambda params: orthogonal_labels(params, RULES),
  )


@nnx.jit
def train_step(model, optimizer, key):
  """Updates the model in place; returns the loss."""
  loss, grads = nnx.value_and_grad(loss_fn)(model, *make_batch(key, 128))
  optimizer.update(model, grads)
  return loss


def train(steps, width=16, depth=3, learning_rate=1e-2, seed=0):
  """Returns the model with its slow weights, and its accuracy."""
  model = Net(width, depth, rngs=nnx.Rngs(seed))
  tx = make_optimizer(learning_rate)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  keys = jax.random.split(jax.random.key(seed), steps + 1)
  for key in keys[1:]:
    train_step(model, optimizer, key)
  params = nnx.as_pure(nnx.state(model, nnx.Param))
  opt_state = nnx.as_pure(optimizer.opt_state)
  nnx.update(model, slow_params(opt_state, params))
  x, label = make_batch(keys[0], 2000)
  return model, jnp.mean((model(x) > 0) == (label > 0.5))


def main():
  """Trains, then prints the accuracy and the worst orthogonality error."""
  model, accuracy = train(600)
  layers = [*model.layers, model.head]
  worst = max(float(orthogonality_error(m.kernel[...])) for m in layers)
  print(f'accuracy {accuracy:.3f}, worst orthogonality error {worst:.1e}')


if __name__ == '__main__':
  main()
