"""Certified models: LipNeXt, its pieces, and the baselines."""

from lipnext_jax.models.baselines import BRONet
from lipnext_jax.models.baselines import LiResNet
from lipnext_jax.models.interface import CertifiedModel
from lipnext_jax.models.interface import head_kernel
from lipnext_jax.models.interface import parameter_count
from lipnext_jax.models.layers import beta_abs
from lipnext_jax.models.layers import l2_pool
from lipnext_jax.models.layers import min_max
from lipnext_jax.models.layers import spatial_shift
from lipnext_jax.models.lipnext import LipNeXt

MODELS: dict[str, type[CertifiedModel]] = {
  'lipnext': LipNeXt,
  'liresnet': LiResNet,
  'bronet': BRONet,
}
"""The models by the names that a config gives them."""

__all__ = [
  'MODELS',
  'BRONet',
  'CertifiedModel',
  'LiResNet',
  'LipNeXt',
  'beta_abs',
  'head_kernel',
  'l2_pool',
  'min_max',
  'parameter_count',
  'spatial_shift',
]
