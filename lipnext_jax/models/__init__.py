"""Certified models: the LipNeXt of the paper, and its pieces."""

from lipnext_jax.models.head import head_kernel
from lipnext_jax.models.layers import beta_abs
from lipnext_jax.models.layers import l2_pool
from lipnext_jax.models.layers import spatial_shift
from lipnext_jax.models.lipnext import LipNeXt

__all__ = ['LipNeXt', 'beta_abs', 'head_kernel', 'l2_pool', 'spatial_shift']
