"""Losses that gradient attacks maximise, and the sets that they search.

All functions are about one example. A loss takes logits [k], the label (the
answer to change) and a rival (the class to change it into); `rival_margin`
alone uses the rival.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def rival_lead(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns max_{j≠y} f_j − f_y, which is positive if the answer is not y."""
  own = jnp.arange(logits.size) == label
  return jnp.max(jnp.where(own, -jnp.inf, logits)) - logits[label]


def cross_entropy(
  logits: jax.Array, label: jax.Array, rival: jax.Array
) -> jax.Array:
  """Computes cross-entropy, whose gradient vanishes at large margins."""
  del rival
  return jax.nn.logsumexp(logits) - logits[label]


def dlr(logits: jax.Array, label: jax.Array, rival: jax.Array) -> jax.Array:
  """Computes the difference of logits ratio (F. Croce, M. Hein, ICML 2020).

  It is (max_{j≠y} f_j − f_y)/(f_(1) − f_(3)) for the largest and third largest
  logit, invariant to shifts and scales of the logits. For two classes, which
  have no third logit, it is the numerator.
  """
  del rival
  difference = rival_lead(logits, label)
  if logits.size < 3:
    return difference
  top = jax.lax.top_k(logits, 3)[0]
  spread = top[0] - top[2]
  return difference / jnp.where(spread > 0, spread, 1)


def rival_margin(
  logits: jax.Array, label: jax.Array, rival: jax.Array
) -> jax.Array:
  """Computes f_rival − f_y, which is linear in the logits."""
  return logits[rival] - logits[label]


LOSSES: dict[str, Loss] = {
  'cross_entropy': cross_entropy,
  'dlr': dlr,
  'rival_margin': rival_margin,
}


def normalize(x: jax.Array) -> jax.Array:
  """Scales an array to unit ℓ2 norm; zeros stay."""
  size = jnp.linalg.norm(x.ravel())
  return x / jnp.where(size > 0, size, 1)


def project(
  x: jax.Array,
  center: jax.Array,
  epsilon: jax.Array,
  box: jax.typing.ArrayLike,
) -> jax.Array:
  """Projects `x` to the ball of radius ε, and then to [0, 1] if `box`.

  For a center in [0, 1], clipping moves every coordinate towards it, so that
  the point stays in the ball. It may not be the nearest point of both sets.

  >>> project(jnp.array([3.0, 4.0]), jnp.zeros(2), 2.5, False).tolist()
  [1.5, 2.0]
  """
  delta = x - center
  size = jnp.linalg.norm(delta.ravel())
  factor = jnp.where(size > epsilon, epsilon / jnp.where(size > 0, size, 1), 1)
  x = center + factor * delta
  return jnp.where(box, jnp.clip(x, 0, 1), x)


def random_start(
  key: jax.Array, center: jax.Array, epsilon: jax.Array
) -> jax.Array:
  """Draws a uniform random point of the ball of radius ε around `center`."""
  radius_key, direction_key = jax.random.split(key)
  noise = jax.random.normal(direction_key, center.shape, center.dtype)
  u = jax.random.uniform(radius_key, (), center.dtype)
  return center + epsilon * u ** (1 / center.size) * normalize(noise)
