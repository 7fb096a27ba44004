"""Bounds the rounding of LipNeXt's features, in any arithmetic.

The backbone is a chain of steps on token features. Let a be the features in
exact arithmetic on the stored numbers, and â those of the arithmetic that runs.
For all inputs in a ball, each step turns bounds B >= ‖a‖ and e >= ‖â − a‖ into
those of its result. docs/certificates.md derives each step and lists what is
assumed of the arithmetic: sums may be taken in any order, multiply-adds may be
fused, and √ and ÷ may err by a few units. Moving entries and flipping signs
(patches, β-Abs) changes no bound.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from lipnext_jax import trees
from lipnext_jax.certify import bound
from lipnext_jax.certify import norms

# Largest error of √ and ÷, in units of roundoff. CPUs round them correctly;
# compilers may turn x/√y into x·rsqrt(y), with an error of a few units.
ELEMENTARY_UNITS = 4
# Covers the rounding of the bounds themselves, sums and products of fewer than
# 2²⁰ positive float64 numbers.
OWN_ROUNDING = 1 + 2.0**-30


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


def lipnext_chain(
  params: Any, factors: Mapping[str, Sequence[float]] | None = None
) -> list[Step]:
  """Lists the steps of a forward pass: stem, blocks, and pooling or a neck.

      x − 1/2 → Q → + bias → depth × [ + pos → I + Rᵀ(S − I)R → M → + bias ]
      → ℓ2 pooling, or Q → + bias (neck) → n × [ Q → + bias ] (dense)

  Only a part of Q is applied; bounds for all of Q hold for the part.

  Args:
    params: parameters of a LipNeXt.
    factors: `bound.lipschitz_bounds(params)`, if already known.

  Raises:
    ValueError: a parameter is not finite or, without `factors`, raw.
  """
  factors = factors or bound.lipschitz_bounds(params)
  for name, leaf in trees.named_leaves(params).items():
    if not np.all(np.isfinite(leaf)):
      raise ValueError(f'{name} is not finite.')
  frobenius = norms.frobenius_norm_bound
  stem, blocks = params['stem'], params['blocks']
  depth, h, w, _ = blocks['pos'].shape
  width, tokens = stem['bias'].shape[0], h * w

  def affine(w, factor, bias, rows) -> list[Step]:
    """Describes the product of W and each of some rows, plus the bias."""
    terms = w.shape[1] + 1  # A compiler may start the sums from the bias.
    size = rows * len(w)
    return [
      Product(factor, frobenius(w), terms, size),
      AddConstant(frobenius(bias) * rows**0.5, size, terms),
    ]

  q = np.asarray(stem['Q'])
  steps: list[Step] = [
    # The input is the exact x − 1/2: only the subtraction's rounding counts.
    AddConstant(0.0, tokens * len(q)),
    *affine(q, factors['stem/Q'][0], stem['bias'], tokens),
  ]
  for layer in range(depth):
    m, bias, pos = (np.asarray(blocks[n][layer]) for n in ('M', 'bias', 'pos'))
    steps.append(AddConstant(frobenius(pos) * width**0.5, tokens * width))
    if 'R' in blocks:
      r, factor = np.asarray(blocks['R'][layer]), factors['blocks/R'][layer]
      # The factor is 2·max(1, ‖R‖₂²) − 1.
      spectral = ((factor + 1) / 2) ** 0.5 * (1 + 4 * norms.UNIT_ROUNDOFF)
      shape = len(r), width, tokens
      steps.append(Shift(factor, spectral, frobenius(r), *shape))
    steps += affine(m, factors['blocks/M'][layer], bias, tokens)
  if 'neck' not in params:
    return [*steps, Pool(tokens, width)]
  for name in ('neck', 'dense'):  # The tokens of an image are one vector here.
    if name in params:
      q, bias = (np.asarray(params[name][leaf]) for leaf in ('Q', 'bias'))
      matrices = q.reshape(-1, *q.shape[-2:])
      biases = bias.reshape(-1, bias.shape[-1])
      bounds = factors[f'{name}/Q']
      for matrix, factor, b in zip(matrices, bounds, biases, strict=True):
        steps += affine(matrix, factor, b, 1)
  return steps


def propagate(
  steps: Sequence[Step],
  norm: np.ndarray,
  arithmetic: norms.Arithmetic = norms.FLOAT64,
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
  return Reach(*(part * OWN_ROUNDING for part in reach))


def _advance(step: Step, reach: Reach, arithmetic: norms.Arithmetic) -> Reach:
  """Computes B and e after one step."""
  norm, error = reach
  computed = norm + error  # >= ‖â‖.
  tiny = arithmetic.tiny
  match step:
    case AddConstant(added, size, terms):
      rounding = arithmetic.gamma(terms) * (computed + added)
      return Reach(norm + added, error + rounding + 3 * tiny * size)
    case Product(spectral, frobenius, length, size):
      own = _product_error(frobenius, length, size, computed, arithmetic)
      return Reach(spectral * norm, spectral * error + own)
    case Shift(factor, spectral, frobenius, k, c, tokens):
      # The step is linear, so the error of â grows by its factor. The roundings
      # of its three operations are added, as later operations stretch them.
      size, moved_size = tokens * c, tokens * k
      rows = _product_error(frobenius, c, moved_size, computed, arithmetic)
      moved = 2 * (spectral * computed + rows)  # >= ‖(S − I) fl(R â)‖.
      subtraction = arithmetic.unit * moved + 3 * tiny * moved_size
      moved += subtraction
      back = _product_error(frobenius, k + 1, size, moved, arithmetic)
      own = spectral * (2 * rows + subtraction) + back
      # â is added to the k terms of Rᵀ d, or the sums start from it.
      addition = arithmetic.gamma(k + 1) * (factor * computed + own)
      addition += 3 * tiny * size
      return Reach(factor * norm, factor * error + own + addition)
    case Pool(tokens, channels):
      rounding = arithmetic.gamma(tokens + 1 + ELEMENTARY_UNITS) * computed
      # Underflow in the squares enters through √(s + t) <= √s + √t.
      lost = channels * math.sqrt(2 * tokens * tiny)
      return Reach(norm, error + rounding + lost)


def _product_error(frobenius, length, size, computed, arithmetic):
  """Bounds ‖fl(W â) − W â‖ for ‖â‖ <= computed, with `size` entries of W â."""
  rounding = arithmetic.gamma(length) * frobenius * computed
  # Each product and partial sum may lose `tiny`, and each entry of â or W that
  # is flushed `tiny` times an entry of the other.
  terms = 4 * size * length
  lost = arithmetic.tiny * terms * (computed + max(1.0, frobenius))
  return rounding + lost
