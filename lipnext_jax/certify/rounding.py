"""Bounds on the rounding of a network's features.

A backbone is a chain of steps on token features. Let a be its features in exact
arithmetic on the stored numbers, and â those of the arithmetic that runs. For
all inputs in a ball, each step turns bounds B >= ‖a‖ and e >= ‖â − a‖ into

    a + d               B' = B + ‖d‖       e' = e + γ_n (B' + e)
    W a                 B' = ‖W‖₂ B        e' = ‖W‖₂ e + γ_n ‖W‖_F (B + e)
    a + Rᵀ(S − I)R a    B' = (2g − 1)B     e' = (2g − 1)e + …
    ‖a‖ over hw tokens  B' = B             e' = e + γ_{hw+5} (B + e)

for a constant d, g = max(1, ‖R‖₂²), and sums of n terms.

Steps that only move entries or flip signs (patches, β-Abs) change no bound.
docs/certificates.md derives each line. Sums may be taken in any order, and
multiply-adds may be fused. The bounds hold for every batch size, thread count
and device that rounds +, −, × correctly, √ and ÷ within 4 units, and flushes to
zero only numbers below the smallest normal one.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

# Largest error of √ and ÷, in units of roundoff. CPUs round them correctly;
# compilers may turn x/√y into x·rsqrt(y), with an error of a few units.
ELEMENTARY_UNITS = 4
# Covers the rounding of the bounds themselves, sums and products of fewer than
# 2²⁰ positive float64 numbers.
OWN_ROUNDING = 1 + 2.0**-30


class Arithmetic(NamedTuple):
  """A floating-point format of a forward pass."""

  unit: float  # Unit roundoff u: half the gap between 1 and the next number.
  tiny: float  # Smallest normal number; smaller ones may become zero.

  def gamma(self, n: int) -> float:
    """Computes γ_n = n·u / (1 − n·u), which bounds n roundings (Higham).

    Raises:
      ValueError: n·u >= 1/2.
    """
    if n * self.unit >= 0.5:
      raise ValueError(f'{n} roundings of {self.unit:.1e} have no bound.')
    return n * self.unit / (1 - n * self.unit)


FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126)


class AddConstant(NamedTuple):
  """The step a + d for a stored constant d, which may be broadcast."""

  norm: float  # >= ‖d‖, broadcast to the shape of a.
  size: int  # Number of entries of a.
  terms: int = 1  # Number of terms of the sum that may start from d.


class Product(NamedTuple):
  """The step W a, for every token a."""

  spectral: float  # >= ‖W‖₂.
  frobenius: float  # >= ‖W‖_F.
  length: int  # Terms of each sum, counting a bias that it may start from.
  size: int  # Number of entries of the result.


class Shift(NamedTuple):
  """The step a + Rᵀ(S − I)R a: R [k, c] acts on tokens, S shifts them."""

  factor: float  # >= 2g − 1.
  spectral: float  # >= ‖R‖₂.
  frobenius: float  # >= ‖R‖_F.
  moved: int  # k.
  channels: int  # c.
  tokens: int


class Pool(NamedTuple):
  """The ℓ2 norm over all tokens, for each channel."""

  tokens: int
  channels: int


Step = AddConstant | Product | Shift | Pool


class Reach(NamedTuple):
  """Bounds on the features at all points of each of some balls."""

  norm: np.ndarray  # B >= ‖a‖.
  error: np.ndarray  # e >= ‖â − a‖.


def lipschitz(steps: Sequence[Step]) -> float:
  """Returns Λ, the product of all Lipschitz constants, rounded up."""
  factors = [s.spectral for s in steps if isinstance(s, Product)]
  factors += [s.factor for s in steps if isinstance(s, Shift)]
  return math.prod(factors) * (1 + 2 * len(factors) * FLOAT64.unit)


def propagate(
  steps: Sequence[Step], norm: np.ndarray, arithmetic: Arithmetic = FLOAT64
) -> Reach:
  """Computes B and e after all steps, for an exact input.

  Args:
    steps: backbone, first step first.
    norm: array of upper bounds on the norm of the input, one for each ball.
    arithmetic: floating-point format of the forward pass.

  Returns:
    Bounds on the features that the head receives, in arrays like `norm`.
  """
  reach = Reach(np.asarray(norm, np.float64), np.zeros(np.shape(norm)))
  for step in steps:
    reach = _advance(step, reach, arithmetic)
  return Reach(*(bound * OWN_ROUNDING for bound in reach))


def _advance(step: Step, reach: Reach, arithmetic: Arithmetic) -> Reach:
  """Computes B and e after one step."""
  norm, error = reach
  computed = norm + error  # >= ‖â‖.
  tiny = arithmetic.tiny
  match step:
    case AddConstant():
      norm = norm + step.norm
      rounding = arithmetic.gamma(step.terms) * (computed + step.norm)
      return Reach(norm, error + rounding + 3 * tiny * step.size)
    case Product():
      own = _product_error(
        step.frobenius, step.length, step.size, computed, arithmetic
      )
      return Reach(step.spectral * norm, step.spectral * error + own)
    case Shift():
      # The step is linear, so the error of â grows by its factor. The roundings
      # of its three operations are added, as later operations stretch them.
      k, c, size = step.moved, step.channels, step.tokens * step.channels
      moved_size = step.tokens * k
      rows = _product_error(step.frobenius, c, moved_size, computed, arithmetic)
      moved = 2 * (step.spectral * computed + rows)  # >= ‖(S − I) fl(R â)‖.
      subtraction = arithmetic.unit * moved + 3 * tiny * moved_size
      back = _product_error(
        step.frobenius, k + 1, size, moved + subtraction, arithmetic
      )
      own = step.spectral * (2 * rows + subtraction) + back
      # â is added to the k terms of Rᵀ d, or the sums start from it.
      addition = arithmetic.gamma(k + 1) * (step.factor * computed + own)
      addition += 3 * tiny * size
      return Reach(step.factor * norm, step.factor * error + own + addition)
    case Pool():
      roundings = step.tokens + 1 + ELEMENTARY_UNITS
      rounding = arithmetic.gamma(roundings) * computed
      # Underflow in the squares enters through √(s + t) <= √s + √t.
      lost = step.channels * math.sqrt(2 * step.tokens * tiny)
      return Reach(norm, error + rounding + lost)


def _product_error(frobenius, length, size, computed, arithmetic):
  """Bounds ‖fl(W â) − W â‖ for ‖â‖ <= computed, with `size` entries of W â."""
  rounding = arithmetic.gamma(length) * frobenius * computed
  # Each product and partial sum may lose `tiny`, and each entry of â or W that
  # is flushed `tiny` times an entry of the other.
  terms = 4 * size * length
  lost = arithmetic.tiny * terms * (computed + max(1.0, frobenius))
  return rounding + lost
