"""Certificates: from logits to radii that hold, and the constant they need."""

from lipnext_jax.certify.bound import bound_product
from lipnext_jax.certify.bound import lipschitz_bound
from lipnext_jax.certify.bound import lipschitz_bounds
from lipnext_jax.certify.radius import certified_accuracy
from lipnext_jax.certify.radius import certified_radius

__all__ = [
  'bound_product',
  'certified_accuracy',
  'certified_radius',
  'lipschitz_bound',
  'lipschitz_bounds',
]
