"""Networks for tests: weights as training leaves them, drawn with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.optim import orthogonal_labels


def draw(model, image_shape, seed=0, scale=1.0):
  """Draws float32 parameters of a model; its initialisation is not compiled.

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
    return a.astype(np.float32)

  return jax.tree_util.tree_map_with_path(
    fill, shapes, orthogonal_labels(shapes)
  )
