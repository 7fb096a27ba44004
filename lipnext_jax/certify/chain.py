"""LipNeXt's backbone as the chain of steps that rounding is bounded over."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lipnext_jax.certify import bound
from lipnext_jax.certify import rounding
from lipnext_jax.certify.norms import frobenius_norm_bound
from lipnext_jax.optim import trees


def _product(w: np.ndarray, factor: float, tokens: int) -> rounding.Product:
  return rounding.Product(
    factor, frobenius_norm_bound(w), _terms(w), tokens * len(w)
  )


def _shift(r: np.ndarray, factor: float, tokens: int) -> rounding.Shift:
  """Recovers a bound on ‖R‖ from the block's factor 2·max(1, ‖R‖²) − 1."""
  moved, channels = r.shape
  spectral = ((factor + 1) / 2) ** 0.5 * (1 + 4 * rounding.FLOAT64.unit)
  return rounding.Shift(
    factor, spectral, frobenius_norm_bound(r), moved, channels, tokens
  )


def _terms(w: np.ndarray) -> int:
  """Counts the terms of a product's sums, with the bias they may start from."""
  return w.shape[1] + 1


def lipnext_chain(
  params: Any, factors: Mapping[str, Sequence[float]] | None = None
) -> list[rounding.Step]:
  """Lists the steps of a forward pass: stem, blocks, and pooling or a neck.

      x − 1/2 → Q → + bias → [ + p → I + Rᵀ(S − I)R → M → + b ]×l → end
      end: L2 pooling, or Q → + bias (neck) → [ Q → + bias ]×m (dense)

  β-Abs flips signs, without a rounding: it leaves no step. Nor does cutting
  and padding Q, which only makes its norms and its sums smaller than those of
  the whole matrix.

  Args:
    params: a LipNeXt's parameters.
    factors: `bound.lipschitz_bounds(params)`, where they are known already.

  Raises:
    ValueError: a parameter that is raw or not finite.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = trees.path_name(path)
    bound.check_explicit(name)
    if not np.all(np.isfinite(leaf)):
      raise ValueError(f'lipnext_chain: {name} is not finite.')
  factors = factors or bound.lipschitz_bounds(params)
  stem, blocks = params['stem'], params['blocks']
  depth, h, w, _ = blocks['pos'].shape
  width, tokens = stem['bias'].shape[0], h * w
  size = tokens * width

  q = np.asarray(stem['Q'])
  steps: list[rounding.Step] = [
    # What goes in is x − 1/2, exact: the subtraction only rounds.
    rounding.AddConstant(0.0, tokens * len(q)),
    _product(q, factors['stem/Q'][0], tokens),
    rounding.AddConstant(
      frobenius_norm_bound(stem['bias']) * tokens**0.5, size, _terms(q)
    ),
  ]
  for layer in range(depth):
    m = np.asarray(blocks['M'][layer])
    steps.append(
      rounding.AddConstant(
        frobenius_norm_bound(blocks['pos'][layer]) * width**0.5, size
      )
    )
    if 'R' in blocks:
      r = np.asarray(blocks['R'][layer])
      steps.append(_shift(r, factors['blocks/R'][layer], tokens))
    steps += [
      _product(m, factors['blocks/M'][layer], tokens),
      rounding.AddConstant(
        frobenius_norm_bound(blocks['bias'][layer]) * tokens**0.5,
        size,
        _terms(m),
      ),
    ]
  if 'neck' not in params:
    return [*steps, rounding.Pool(tokens, width)]
  for name in ('neck', 'dense'):  # The tokens of an image are one vector now.
    if name not in params:
      continue
    q, bias = (np.asarray(params[name][leaf]) for leaf in ('Q', 'bias'))
    layers = zip(
      q.reshape(-1, *q.shape[-2:]),
      bias.reshape(-1, bias.shape[-1]),
      factors[f'{name}/Q'],
      strict=True,
    )
    for w, b, factor in layers:
      steps += [
        _product(w, factor, 1),
        rounding.AddConstant(frobenius_norm_bound(b), len(w), _terms(w)),
      ]
  return steps
