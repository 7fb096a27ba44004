"""LipNeXt's backbone as a chain of steps, for the bound on rounding."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipnext_jax import trees
from lipnext_jax.certify import bound
from lipnext_jax.certify import rounding
from lipnext_jax.certify.norms import frobenius_norm_bound


def lipnext_chain(
  params: Any, factors: Mapping[str, Sequence[float]] | None = None
) -> list[rounding.Step]:
  """Lists the steps of a forward pass: stem, blocks, and pooling or a neck.

      x − 1/2 → Q → + bias → depth × [ + pos → I + Rᵀ(S − I)R → M → + bias ]
      → ℓ2 pooling, or Q → + bias (neck) → n × [ Q → + bias ] (dense)

  β-Abs only flips signs, which is exact, so it is not a step. Only a part of Q
  is applied; bounds for all of Q hold for the part.

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
  stem, blocks = params['stem'], params['blocks']
  depth, h, w, _ = blocks['pos'].shape
  width, tokens = stem['bias'].shape[0], h * w

  def affine(w, factor, bias, rows) -> list[rounding.Step]:
    """Describes the product of W and each of some rows, plus the bias."""
    terms = w.shape[1] + 1  # A compiler may start the sums from the bias.
    norm = frobenius_norm_bound(bias) * rows**0.5
    return [
      rounding.Product(factor, frobenius_norm_bound(w), terms, rows * len(w)),
      rounding.AddConstant(norm, rows * len(w), terms),
    ]

  q = np.asarray(stem['Q'])
  steps: list[rounding.Step] = [
    # The input is the exact x − 1/2: only the subtraction's rounding counts.
    rounding.AddConstant(0.0, tokens * len(q)),
    *affine(q, factors['stem/Q'][0], stem['bias'], tokens),
  ]
  for layer in range(depth):
    m, bias, pos = (np.asarray(blocks[n][layer]) for n in ('M', 'bias', 'pos'))
    norm = frobenius_norm_bound(pos) * width**0.5
    steps.append(rounding.AddConstant(norm, tokens * width))
    if 'R' in blocks:
      r = np.asarray(blocks['R'][layer])
      steps.append(_shift(r, factors['blocks/R'][layer], tokens))
    steps += affine(m, factors['blocks/M'][layer], bias, tokens)
  if 'neck' not in params:
    return [*steps, rounding.Pool(tokens, width)]
  for name in ('neck', 'dense'):  # The tokens of an image are one vector here.
    if name in params:
      q, bias = (np.asarray(params[name][leaf]) for leaf in ('Q', 'bias'))
      matrices = q.reshape(-1, *q.shape[-2:])
      biases = bias.reshape(-1, bias.shape[-1])
      bounds = factors[f'{name}/Q']
      for matrix, factor, b in zip(matrices, bounds, biases, strict=True):
        steps += affine(matrix, factor, b, 1)
  return steps


def _shift(r: np.ndarray, factor: float, tokens: int) -> rounding.Shift:
  """Describes I + Rᵀ(S − I)R, with ‖R‖ from its factor 2·max(1, ‖R‖²) − 1."""
  moved, channels = r.shape
  spectral = ((factor + 1) / 2) ** 0.5 * (1 + 4 * rounding.FLOAT64.unit)
  return rounding.Shift(
    factor, spectral, frobenius_norm_bound(r), moved, channels, tokens
  )
