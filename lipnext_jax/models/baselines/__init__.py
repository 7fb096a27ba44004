"""The rivals of LipNeXt's paper, behind the same interface.

Written from their papers, small enough to read; see `models.interface`.
"""

from lipnext_jax.models.baselines.bronet import BRONet
from lipnext_jax.models.baselines.liresnet import LiResNet

__all__ = ['BRONet', 'LiResNet']
