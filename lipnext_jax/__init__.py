"""LipNeXt in JAX: classifiers with a proved ℓ2 radius of constant answers."""

__version__ = '0.1.0'
