"""Certificates: from logits to radii that hold, and the constant they need."""

from lipnext_jax.certify.artifact import export_predictor
from lipnext_jax.certify.artifact import load_predictor
from lipnext_jax.certify.artifact import Predictor
from lipnext_jax.certify.bound import bound_product
from lipnext_jax.certify.bound import float32_above
from lipnext_jax.certify.bound import lipschitz_bound
from lipnext_jax.certify.bound import lipschitz_bounds
from lipnext_jax.certify.radius import certified_accuracy
from lipnext_jax.certify.radius import certified_radius
from lipnext_jax.certify.radius import rival_radii
from lipnext_jax.certify.rigorous import rigorous_certifier
from lipnext_jax.certify.rigorous import rigorous_radius

__all__ = [
  'Predictor',
  'bound_product',
  'certified_accuracy',
  'certified_radius',
  'export_predictor',
  'float32_above',
  'lipschitz_bound',
  'lipschitz_bounds',
  'load_predictor',
  'rigorous_certifier',
  'rigorous_radius',
  'rival_radii',
]
