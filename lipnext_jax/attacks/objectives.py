"""What gradient attacks climb, and the sets they stay in. All in JAX.

Shapes: logits [b, k], labels [b] int (the answer to be changed), rivals [b] int
(the class to change it into, for losses that have one).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lipnext_jax.attacks import target as target_lib

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _of(logits: jax.Array, classes: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _without(logits: jax.Array, labels: jax.Array) -> jax.Array:
  own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return jnp.where(own, -jnp.inf, logits)


def best_rival(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """max_{j≠y} f_j − f_y: positive where the answer is another. [b].

  >>> best_rival(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
  [-1.0]
  """
  rival = jnp.max(_without(logits, labels), axis=-1)
  return rival - _of(logits, labels)


def cross_entropy(
  logits: jax.Array, labels: jax.Array, rivals: jax.Array
) -> jax.Array:
  """The usual loss; its gradient dies out where the margin is large. [b]."""
  del rivals
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array, rivals: jax.Array) -> jax.Array:
  """Difference of logits ratio: (max_{j≠y} f_j − f_y)/(f_π1 − f_π3). [b].

  Invariant to shifts and scales of the logits (F. Croce, M. Hein, "Reliable
  evaluation of adversarial robustness …", ICML 2020). With two classes there
  is no third logit, and the difference stands alone.

  >>> logits = jnp.array([[3.0, 1.0, 2.0]])
  >>> labels = jnp.array([0])
  >>> [dlr(s * logits + 5, labels, labels).item() for s in (1.0, 64.0)]
  [-0.5, -0.5]
  """
  del rivals
  difference = best_rival(logits, labels)
  if logits.shape[-1] < 3:
    return difference
  top = jax.lax.top_k(logits, 3)[0]
  spread = top[:, 0] - top[:, 2]
  return difference / jnp.where(spread > 0, spread, 1)


def rival_margin(
  logits: jax.Array, labels: jax.Array, rivals: jax.Array
) -> jax.Array:
  """f_rival − f_y: towards one class, linear in the logits. [b].

  >>> logits = jnp.array([[3.0, 1.0, 2.0]])
  >>> rival_margin(logits, jnp.array([0]), jnp.array([1])).tolist()
  [-2.0]
  """
  return _of(logits, rivals) - _of(logits, labels)


LOSSES: dict[str, Loss] = {
  'cross_entropy': cross_entropy,
  'dlr': dlr,
  'rival_margin': rival_margin,
}


def norms(x: jax.Array) -> jax.Array:
  """ℓ2 norms of the rows: [b, …] → [b]."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def normalize(x: jax.Array) -> jax.Array:
  """Rows of unit norm; rows of zeros stay.

  >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  size = norms(x)
  size = jnp.where(size > 0, size, 1)
  return x / target_lib.spread(size, x)


def project(
  x: jax.Array,
  center: jax.Array,
  epsilons: jax.Array,
  box: jax.typing.ArrayLike,
) -> jax.Array:
  """Into the ball of radius ε around `center`, then into [0, 1].

  For a center in [0, 1], clipping moves every coordinate towards it: the point
  stays in the ball (it need not be the nearest one of the intersection).

  Args:
    x: [b, …].
    center: [b, …].
    epsilons: [b], ℓ2 in the units of the images.
    box: whether to stay in [0, 1]; bool, or a traced one.

  >>> x, center = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]])
  >>> project(x, center, jnp.array([10.0]), True).tolist()
  [[1.0, 1.0]]
  >>> project(x, center, jnp.array([2.5]), False).tolist()
  [[1.5, 2.0]]
  """
  delta = x - center
  size = norms(delta)
  factor = jnp.where(
    size > epsilons, epsilons / jnp.where(size > 0, size, 1), 1
  )
  x = center + target_lib.spread(factor, x) * delta
  return jnp.where(box, jnp.clip(x, 0, 1), x)


def random_start(
  key: jax.Array, center: jax.Array, epsilons: jax.Array
) -> jax.Array:
  """Uniform in the ball of radius ε around `center`: [b, …]."""
  radius_key, direction_key = jax.random.split(key)
  direction = normalize(
    jax.random.normal(direction_key, center.shape, center.dtype)
  )
  dimension = center[0].size
  u = jax.random.uniform(radius_key, epsilons.shape, center.dtype)
  radius = epsilons * u ** (1 / dimension)
  return center + target_lib.spread(radius, center) * direction
