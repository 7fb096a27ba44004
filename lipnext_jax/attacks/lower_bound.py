"""Lower bounds on Lipschitz constants, which show how tight Λ is.

Gradient ascent on pairs (x, x') maximises one of two quotients, for the
backbone g and for the logits f with head rows w:

    ‖g(x) − g(x')‖ / ‖x − x'‖   and   |(f_a − f_b)(x) − (f_a − f_b)(x')|
                                      / (‖w_a − w_b‖ ‖x − x'‖).

Both are <= Λ. They are computed in float64: features of norm 10 are off by
about 1e-12, and a quotient at distance 1e-2 by about 1e-10.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax.attacks import gradient
from lipnext_jax.certify import rigorous

# Largest and smallest distance of a pair, ℓ2 in [0, 1] pixel units. Small ones
# measure the Jacobian, but are far above rounding.
_DISTANCES = 1.0, 1e-2
_LEARNING_RATE = 0.03  # Adam's, on pixels and unit directions.
ROUNDING = 1e-8  # Bound on the rounding of a quotient.


class LowerBound(NamedTuple):
  """The largest quotients that were found, off by rounding of about 1e-10."""

  backbone: float
  logits: float


@functools.partial(jax.jit, static_argnames=('model', 'steps'))
def _ascend(model, params, keys, images, distances, steps):
  """Maximises from every image; returns the largest quotients, [b] each."""
  kernel = models.head_kernel({'params': params})
  k, c = kernel.shape
  # The backbone is the model with an identity for its head.
  features = model.clone(num_classes=c)
  params = params | {'head': {'kernel': jnp.eye(c), 'bias': jnp.zeros(c)}}
  rows = losses.row_distances(kernel)
  tx = optax.adam(_LEARNING_RATE)

  def climb(key, image, distance, even):
    first_key, direction_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, k)
    apart = jnp.where(rows[first] > 0, rows[first], jnp.inf)

    def objective(pair):
      x, direction = pair
      both = jnp.stack([x, x + distance * gradient.normalize(direction)])
      g: Any = features.apply({'params': params}, both)
      moved = (g[1] - g[0]) / distance
      backbone = jnp.linalg.norm(moved)
      changes = kernel @ moved
      logits = jnp.max(jnp.abs(changes[first] - changes) / apart)
      # Each pair maximises one of the two.
      return -jnp.where(even, backbone, logits), (backbone, logits)

    def step(carry, _):
      pair, state, best = carry
      grads, found = jax.grad(objective, has_aux=True)(pair)
      best = jax.tree.map(jnp.maximum, best, found)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(pair, updates), state, best), None

    noise = jax.random.normal(direction_key, image.shape, image.dtype)
    pair = (image, gradient.normalize(noise))
    nothing = (jnp.zeros([]), jnp.zeros([]))
    carry, _ = jax.lax.scan(step, (pair, tx.init(pair), nothing), length=steps)
    return carry[2]

  even = jnp.arange(len(images)) % 2 == 0
  return jax.vmap(climb)(keys, images, distances, even)


def lipschitz_lower_bound(
  model: Any,
  params: Any,
  images: np.ndarray,
  *,
  restarts: int = 64,
  steps: int = 200,
  seed: int = 0,
) -> LowerBound:
  """Maximises each quotient by gradient ascent, on half of the pairs.

  Args:
    model: certified model.
    params: explicit parameters of the model.
    images: [n, H, W, ch] in [0, 1], starting points, taken in turn.
    restarts: number of pairs.
    steps: number of steps of gradient ascent.
    seed: seed of the random directions.
  """
  turn = np.arange(restarts)
  # Two neighbouring pairs, one for each quotient, have the same distance.
  distances = np.geomspace(*_DISTANCES, (restarts + 1) // 2)
  with jax.enable_x64(True):
    found = _ascend(
      model.explicit(jnp.float64),
      rigorous.float64_params(params),
      jax.random.split(jax.random.key(seed), restarts),
      np.asarray(images, np.float64)[turn % len(images)],
      distances[turn // 2],
      steps,
    )
    return LowerBound(*(float(np.max(quotients)) for quotients in found))
