"""The models that LipNeXt's paper compares with, written from their papers."""

from lipnext_jax.models.baselines.bronet import BRONet
from lipnext_jax.models.baselines.liresnet import LiResNet

__all__ = ['BRONet', 'LiResNet']
