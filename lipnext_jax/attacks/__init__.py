"""Attacks that search for counterexamples to certificates."""

from lipnext_jax.attacks.lower_bound import lipschitz_lower_bound
from lipnext_jax.attacks.run import attack_target
from lipnext_jax.attacks.run import Settings
from lipnext_jax.attacks.target import certified_target
from lipnext_jax.attacks.target import Ledger
from lipnext_jax.attacks.target import Target

__all__ = [
  'Ledger',
  'Settings',
  'Target',
  'attack_target',
  'certified_target',
  'lipschitz_lower_bound',
]
