"""LipNeXt in JAX: image classifiers with a proved ℓ2 radius."""

__version__ = '0.1.0'
