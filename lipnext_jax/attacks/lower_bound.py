"""Bounds Lipschitz constants from below, which shows how tight Λ is.

A proved bound from above says nothing about how much of it is real. Gradient
ascent on pairs (x, x') gives bounds from below: for the backbone g and for the
logits f, with head rows w,

    ‖g(x) − g(x')‖ / ‖x − x'‖   and   |(f_i − f_j)(x) − (f_i − f_j)(x')|
                                      / (‖w_i − w_j‖ ‖x − x'‖).

Both are <= Λ. All in float64, with distances that keep rounding small: features
of norm 10 differ from the exact ones by 1e-12 or so, the quotient at distance
1e-2 by 1e-10.
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
from lipnext_jax.attacks import objectives
from lipnext_jax.certify import rigorous

_LARGEST_DISTANCE = 1.0  # ℓ2, [0, 1] pixel units: global behaviour, …
_SMALLEST_DISTANCE = 1e-2  # … and local: Jacobians, but far above rounding.
_LEARNING_RATE = 0.03  # Of Adam, on pixels and unit directions.
# Above Λ by more than this is more than rounding can be.
ROUNDING = 1e-8


class LowerBound(NamedTuple):
  """The largest quotients that were found; true up to rounding (1e-10)."""

  backbone: float
  logits: float


@functools.partial(jax.jit, static_argnames=('model', 'steps'))
def _ascend(model, params, keys, images, distances, steps):
  """Climbs from every image; returns the largest quotients met, [b] each."""
  kernel = models.head_kernel({'params': params})
  k, c = kernel.shape
  # The backbone is the model under a head that changes nothing.
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
      both = jnp.stack([x, x + distance * objectives.normalize(direction)])
      g: Any = features.apply({'params': params}, both)
      moved = (g[1] - g[0]) / distance
      backbone = jnp.linalg.norm(moved)
      changes = kernel @ moved
      logits = jnp.max(jnp.abs(changes[first] - changes) / apart)
      # Each restart climbs one of the two.
      return -jnp.where(even, backbone, logits), (backbone, logits)

    def step(carry, _):
      pair, state, best = carry
      grads, found = jax.grad(objective, has_aux=True)(pair)
      best = jax.tree.map(jnp.maximum, best, found)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(pair, updates), state, best), None

    noise = jax.random.normal(direction_key, image.shape, image.dtype)
    pair = (image, objectives.normalize(noise))
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
  """Climbs both quotients by gradient ascent on pairs, half of them each.

  Args:
    model: a `models.interface.CertifiedModel`.
    params: its explicit parameters.
    images: [n, H, W, ch] in [0, 1], starting points, taken in turn.
    restarts: number of pairs.
    steps: of ascent.
    seed: of the directions.
  """
  turn = np.arange(restarts)
  # Neighbouring restarts climb different quotients: each gets all distances.
  distances = np.geomspace(
    _LARGEST_DISTANCE, _SMALLEST_DISTANCE, (restarts + 1) // 2
  )
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
