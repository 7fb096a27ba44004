"""Networks for tests: weights as training leaves them, drawn with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.aot import flops
from lipnext_jax.optim import orthogonal_labels


def draw(model, image_shape, seed=0, scale=1.0, dtype=np.float32):
  """Draws the parameters of a model; its initialisation is not compiled.

  Orthogonal matrices have orthonormal rows; the rest is normal, of standard
  deviation `scale` where it is added, so that nothing lies at a special point.
  """
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *image_shape))
  )['params']
  rng = np.random.default_rng(seed)

  def fill(path, leaf, label):
    a = rng.normal(size=leaf.shape)
    if label == 'orthogonal':
      a = np.swapaxes(np.linalg.qr(np.swapaxes(a, -1, -2))[0], -1, -2)
    elif path[-1].key in ('bias', 'pos'):
      a *= scale
    elif path[-1].key.startswith('conv'):  # So that norms are about one.
      a /= 3 * leaf.shape[-1] ** 0.5
    return a.astype(dtype)

  return jax.tree_util.tree_map_with_path(
    fill, shapes, orthogonal_labels(shapes)
  )


def dots(jaxpr):
  """Yields all products, of inner jaxprs too; of branches, the first one."""
  for e in flops.open_jaxpr(jaxpr).eqns:
    if e.primitive.name == 'dot_general':
      yield e
    inner = list(flops.inner_jaxprs(e))
    if e.primitive.name == 'cond':
      inner = inner[:1]  # The product of one platform or another.
    for jaxpr in inner:
      yield from dots(jaxpr)
