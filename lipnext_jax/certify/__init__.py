"""Certified radii, the proved Lipschitz bound, and predictors in one file."""

from lipnext_jax.certify.bound import bound_product
from lipnext_jax.certify.bound import lipschitz_bound
from lipnext_jax.certify.bound import lipschitz_bounds
from lipnext_jax.certify.fast import Constants
from lipnext_jax.certify.fast import fast_certifier
from lipnext_jax.certify.fast import float32_above
from lipnext_jax.certify.fast import margin_floor
from lipnext_jax.certify.fast import prove_constants
from lipnext_jax.certify.predictor import CERTIFICATES
from lipnext_jax.certify.predictor import Contents
from lipnext_jax.certify.predictor import export_predictor
from lipnext_jax.certify.predictor import export_program
from lipnext_jax.certify.predictor import load_predictor
from lipnext_jax.certify.predictor import Predictor
from lipnext_jax.certify.radius import certified_accuracy
from lipnext_jax.certify.radius import certified_radius
from lipnext_jax.certify.rigorous import rigorous_certifier
from lipnext_jax.certify.rigorous import rigorous_radius

__all__ = [
  'CERTIFICATES',
  'Constants',
  'Contents',
  'Predictor',
  'bound_product',
  'certified_accuracy',
  'certified_radius',
  'export_predictor',
  'export_program',
  'fast_certifier',
  'float32_above',
  'lipschitz_bound',
  'lipschitz_bounds',
  'load_predictor',
  'margin_floor',
  'prove_constants',
  'rigorous_certifier',
  'rigorous_radius',
]
