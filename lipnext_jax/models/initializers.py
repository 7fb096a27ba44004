"""Start points on O(n): where manifold optimisation begins."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lipnext_jax.optim import retraction


def haar(key, shape, dtype=jnp.float32) -> jax.Array:
  """Draws the first m rows of a Haar-random orthogonal [n, n].

  QR of a Gaussian, signs fixed; then one Newton–Schulz step, for float32's QR
  is a few 1e-6 off at n=1024.

  >>> from lipnext_jax.optim import orthogonality_error
  >>> bool(orthogonality_error(haar(jax.random.key(0), (64, 64))) < 2e-6)
  True
  """
  q = jax.nn.initializers.orthogonal()(key, shape, jnp.float32)
  return retraction.polar_retract(q).astype(dtype)


def identity(key, shape, dtype=jnp.float32) -> jax.Array:
  """Returns the first m rows of the identity [n, n].

  >>> identity(None, (2, 2)).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  del key  # Unused: nothing is random.
  return jnp.eye(shape[0], shape[1], dtype=dtype)


ORTHOGONAL: dict[str, Callable[..., jax.Array]] = {
  'haar': haar,
  'identity': identity,
}
