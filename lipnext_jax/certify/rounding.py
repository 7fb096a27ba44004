"""Bounds how far rounding can carry a network's features.

A backbone is a chain of steps on token features. For every input in a ball the
bound follows two numbers through the chain:

    B >= ‖a‖       the exact features, in exact arithmetic on the stored numbers
    e >= ‖â − a‖   what the arithmetic that runs makes of them

    a + constant      B' = B + ‖c‖       e' = e + γ_t (B' + e)
    W a               B' = ‖W‖₂ B        e' = ‖W‖₂ e + γ_n ‖W‖_F (B + e)
    a + Rᵀ(S − I)R a  B' = τB            e' = τe + …,  τ = 2·max(1, ‖R‖₂²) − 1
    ‖a‖ over T tokens B' = B             e' = e + γ_{T+5} (B + e)

and steps that only move or flip entries (patches, shift, β-Abs) change neither.
`docs/certificates.md` derives each line. The arithmetic may sum in any order
and fuse multiply-adds, so the bound holds for every batch size, thread count
and device that rounds +, −, × correctly, √ and ÷ within 4 units, and flushes
only numbers below the smallest normal one to zero.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

# √ and ÷ are correctly rounded on CPUs; compilers may turn x/√y into x·rsqrt(y)
# with an error of a few units. Allowed here, in units of roundoff.
ELEMENTARY_UNITS = 4
# The bound's own float64 arithmetic: sums and products of fewer than 2²⁰
# positive numbers, each rounded by 2⁻⁵³, are off by less than this factor.
OWN_ROUNDING = 1 + 2.0**-30


class Arithmetic(NamedTuple):
  """A floating-point format that the forward pass runs in."""

  unit: float  # u, the unit roundoff: half the gap between 1 and the next.
  tiny: float  # The smallest normal number; smaller ones may become zero.

  def gamma(self, n: int) -> float:
    """Computes γ_n = n·u / (1 − n·u), of n roundings in any order (Higham).

    Raises:
      ValueError: n·u >= 1/2 bounds nothing.
    """
    if n * self.unit >= 0.5:
      raise ValueError(f'{n} roundings of {self.unit:.1e} have no bound.')
    return n * self.unit / (1 - n * self.unit)


FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022)
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126)


class AddConstant(NamedTuple):
  """The step a + c for a stored c, broadcast or not."""

  norm: float  # >= ‖c‖ over all entries of a.
  size: int  # Entries of a.
  terms: int = 1  # Of the sum that c may be folded into.


class Product(NamedTuple):
  """The step W a, for every token a."""

  spectral: float  # >= ‖W‖₂.
  frobenius: float  # >= ‖W‖_F.
  length: int  # n: terms of each sum, a constant that may join it included.
  size: int  # Entries of the result.


class Shift(NamedTuple):
  """The step a + Rᵀ(S − I)R a: R [k, c] on every token, S between tokens."""

  factor: float  # >= the Lipschitz constant, 2·max(1, ‖R‖₂²) − 1.
  spectral: float  # >= ‖R‖₂.
  frobenius: float  # >= ‖R‖_F.
  moved: int  # k.
  channels: int  # c.
  tokens: int


class Pool(NamedTuple):
  """The ℓ2 norm over the tokens, channel by channel."""

  tokens: int
  channels: int


Step = AddConstant | Product | Shift | Pool


class Reach(NamedTuple):
  """Bounds on the features at any point of a ball; each of shape [b]."""

  norm: np.ndarray  # B >= ‖a‖, exact.
  error: np.ndarray  # e >= ‖computed − exact‖.


def lipschitz(steps: Sequence[Step]) -> float:
  """Multiplies all factors: the chain's Lipschitz constant Λ, rounded up."""
  factors = [s.spectral for s in steps if isinstance(s, Product)]
  factors += [s.factor for s in steps if isinstance(s, Shift)]
  return math.prod(factors) * (1 + 2 * len(factors) * FLOAT64.unit)


def propagate(
  steps: Sequence[Step], norm: np.ndarray, arithmetic: Arithmetic = FLOAT64
) -> Reach:
  """Follows B and e through a chain, from an input that is exact.

  Args:
    steps: the backbone, first step first.
    norm: [b], upper bounds on the norm of the input over the ball.
    arithmetic: what the forward pass runs in.

  Returns:
    Bounds on the features that the head receives. Both are affine in `norm`,
    with a constant part >= 0: at t >= 1 times the norm, t times them hold.

  >>> reach = propagate([Product(1.0, 8.0, 64, 64)], np.array([2.0]))
  >>> f'{reach.norm[0]:.6f} {reach.error[0]:.0e}'
  '2.000000 1e-13'
  """
  reach = Reach(np.asarray(norm, np.float64), np.zeros(np.shape(norm)))
  for step in steps:
    reach = _advance(step, reach, arithmetic)
  return Reach(*(bound * OWN_ROUNDING for bound in reach))


def _advance(step: Step, reach: Reach, arithmetic: Arithmetic) -> Reach:
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
      # The map is linear: what a has of error goes through it as a whole. To
      # that add the roundings of three operations on the computed â, each
      # carried through what follows it.
      k, c, size = step.moved, step.channels, step.tokens * step.channels
      moved_size = step.tokens * k
      rows = _product_error(step.frobenius, c, moved_size, computed, arithmetic)
      moved = 2 * (step.spectral * computed + rows)  # >= ‖(S − I) fl(R â)‖.
      subtraction = arithmetic.unit * moved + 3 * tiny * moved_size
      back = _product_error(
        step.frobenius, k + 1, size, moved + subtraction, arithmetic
      )
      own = step.spectral * (2 * rows + subtraction) + back
      # The sums of Rᵀ d may start from a, or a is added to them: k + 1 terms.
      addition = arithmetic.gamma(k + 1) * (step.factor * computed + own)
      addition += 3 * tiny * size
      return Reach(step.factor * norm, step.factor * error + own + addition)
    case Pool():
      roundings = step.tokens + 1 + ELEMENTARY_UNITS
      rounding = arithmetic.gamma(roundings) * computed
      # √(s + t) <= √s + √t: what underflows in the squares comes out as a root.
      lost = step.channels * math.sqrt(2 * step.tokens * tiny)
      return Reach(norm, error + rounding + lost)


def _product_error(frobenius, length, size, computed, arithmetic):
  """Bounds ‖fl(W â) − W â‖ for ‖â‖ <= computed, with `size` entries of W â."""
  rounding = arithmetic.gamma(length) * frobenius * computed
  # Each product and each partial sum may lose `tiny`; each flushed entry of â
  # or W as much, times the entry of the other.
  terms = 4 * size * length
  lost = arithmetic.tiny * terms * (computed + max(1.0, frobenius))
  return rounding + lost
