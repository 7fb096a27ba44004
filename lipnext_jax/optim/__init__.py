"""Optimizers on the orthogonal group, as optax transformations.

This library needs jax, optax and numpy alone.
"""

from lipnext_jax.optim.euclidean import lookahead
from lipnext_jax.optim.euclidean import scheduled_nadam
from lipnext_jax.optim.exponential import fast_exp
from lipnext_jax.optim.exponential import fast_expm1
from lipnext_jax.optim.manifold import orthogonal
from lipnext_jax.optim.recipe import lipnext_optimizer
from lipnext_jax.optim.recipe import orthogonal_labels
from lipnext_jax.optim.recipe import slow_params
from lipnext_jax.optim.retraction import orthogonality_error
from lipnext_jax.optim.retraction import polar_retract

__all__ = [
  'fast_exp',
  'fast_expm1',
  'lipnext_optimizer',
  'lookahead',
  'orthogonal',
  'orthogonal_labels',
  'orthogonality_error',
  'polar_retract',
  'scheduled_nadam',
  'slow_params',
]
