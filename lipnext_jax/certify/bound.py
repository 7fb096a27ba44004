"""Proves an upper bound Λ on the Lipschitz constant of a model's backbone.

The backbone is everything before the head. Λ is the product of a factor per
operator, bounded from the stored weights in float64 with rounding accounted
for. Activations, pooling and constants are 1-Lipschitz for any weights. An
array's name tells which operator it is. Proof: docs/certificates.md.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any

import jax
import numpy as np

from lipnext_jax import trees
from lipnext_jax.certify import convolution
from lipnext_jax.certify import norms
from lipnext_jax.models import parametrizations
from lipnext_jax.optim import recipe

# Largest value of (sum of the norms of constants)/√tokens that
# `lipschitz_bound` accepts. That of a model trained on digits is 15.
LARGEST_CONSTANTS = 2.0**10


def operator_factor(kind: str, norm: float) -> float:
  """Bounds the Lipschitz constant of the operator that applies a matrix W.

  A block of LipNeXt applies M (I + Rᵀ(S − I)R). The factor of R is
  2·max(1, ‖R‖₂²) − 1, and that of any other matrix is its norm.

  Args:
    kind: last part of the name of W, e.g. 'R'.
    norm: upper bound on max(1, ‖W‖₂).

  >>> operator_factor('M', 1.25), operator_factor('R', 1.0)
  (1.25, 1.0000000000000009)
  """
  if kind != 'R':
    return norm
  # Three roundings, each of at most 2u times the factor: 8u covers them.
  return (2 * norm * norm - 1) * (1 + 8 * norms.UNIT_ROUNDOFF)


def lipschitz_bound(
  params: Any, label_fn: Callable[[Any], Any] = recipe.orthogonal_labels
) -> float:
  """Proves Λ, an upper bound on the backbone's ℓ2 Lipschitz constant.

  Λ is the product of `lipschitz_bounds`. It bounds the network in exact
  arithmetic and does not depend on the constants that layers add. But large
  ones cost the logits digits in float32, and `certify.certified_radius` takes
  the logits for exact, so constants whose norms sum to more than 2¹⁰·√tokens
  are refused. With smaller ones, rounding may fake a radius of up to
  0.004·√tokens. That is an estimate, of 64 units of rounding:
  64·2⁻²⁴·2¹⁰·√tokens.

  Args:
    params: explicit parameters of a model, or `{'params': …}`.
    label_fn: function from parameters to a tree of 'orthogonal' (a stack of
      matrices [..., m, n]) and 'euclidean'.

  Returns:
    A Python float >= the true constant.

  Raises:
    ValueError: there is no orthogonal parameter; a parameter has no label, is
      raw, is not finite, or has no exact float64 value; or the constants are
      too large.

  >>> params = {'blocks': {'R': np.eye(4)[None], 'M': 1.001 * np.eye(4)[None]}}
  >>> 1.001 <= lipschitz_bound(params) < 1.0011
  True
  """
  total, tokens = sum_constants(params)
  constants = total / tokens**0.5
  if not constants <= LARGEST_CONSTANTS:
    raise ValueError(
      f'biases and positional terms of norm {constants:.3g} a token, more than '
      f'{LARGEST_CONSTANTS:g}, can hide changes in the rounding of float32; '
      'certify with rigorous_certifier or fast_certifier.'
    )
  return bound_product(lipschitz_bounds(params, label_fn))


def lipschitz_bounds(
  params: Any,
  label_fn: Callable[[Any], Any] = recipe.orthogonal_labels,
  part: tuple[int, int] = (0, 1),
) -> dict[str, list[float]]:
  """Bounds each operator of each layer: the factors of Λ.

  Args:
    params: see `lipschitz_bound`.
    label_fn: see `lipschitz_bound`.
    part: (i, n) to split the work between n processes: matrix i and every n-th
      after it are bounded, and the others get 0. The elementwise maximum over
      the processes has all bounds. Convolutions are bounded in every part.

  Returns:
    {name: a bound per layer}: for matrices, which are the leaves that
    `label_fn` calls orthogonal, and for convolutions on the grid of `stem/pos`,
    which are the leaves that `convolution.BOUNDS` names.

  Raises:
    ValueError: a leaf has no label, is raw, not finite or not held by float64.
  """
  labels = jax.tree.leaves(label_fn(params))
  leaves = trees.named_leaves(params)
  grids = [p.shape[:2] for n, p in leaves.items() if n.endswith('stem/pos')]
  bounds: dict[str, list[float]] = {}
  index, parts = part
  in_part = (i % parts == index for i in itertools.count())
  for (name, leaf), label in zip(leaves.items(), labels, strict=True):
    if name.endswith(parametrizations.RAW):
      raise ValueError(
        f'{name} is mapped to a matrix before it is applied; certify '
        'model.explicit_params(params).'
      )
    stack, kind = np.asarray(leaf), name.rpartition('/')[2]
    if kind in convolution.BOUNDS:
      if not grids:
        raise ValueError(f'no stem/pos tells the grid of {name}.')
      ndim, bound = convolution.BOUNDS[kind]
      operators = stack.reshape(-1, *stack.shape[-ndim:])
      bounds[name] = [bound(operator, grids[0]) for operator in operators]
    if label == 'orthogonal':
      bounds[name] = [
        operator_factor(kind, norms.spectral_norm_bound(w))
        if next(in_part)
        else 0.0
        for w in stack.reshape(-1, *stack.shape[-2:])
      ]
  return bounds


def bound_product(bounds: Mapping[str, Sequence[float]]) -> float:
  """Multiplies the factors of `lipschitz_bounds` and rounds up.

  Raises:
    ValueError: there is no factor.
  """
  if not bounds:
    raise ValueError('no orthogonal parameter to bound; check label_fn.')
  factors = [factor for layers in bounds.values() for factor in layers]
  # Each multiplication rounds by u at most.
  return math.prod(factors) * (1 + 2 * len(factors) * norms.UNIT_ROUNDOFF)


def sum_constants(params: Any) -> tuple[float, int]:
  """Sums the norms of all constants that a backbone adds.

  A leaf `pos` [..., h, w, 1] is added to every channel. A leaf `bias` [..., c]
  is added to every token or, in a neck and its dense layers, once an image.

  Returns:
    Σ ‖d‖ over these constants d, without the head's bias, and the number of
    tokens of an image.

  >>> sum_constants({'stem': {'bias': np.array([3.0, 4.0])}})
  (5.0, 1)
  """

  def total(leaf, axes):
    wide = norms.to_float64(leaf)
    rows = wide.reshape(-1, math.prod(wide.shape[-axes:]))
    return np.sum(np.linalg.norm(rows, axis=-1))

  tokens = width = 1
  of_tokens = of_images = of_channels = 0.0
  for name, leaf in trees.named_leaves(params).items():
    path, shape = name.removeprefix('params/').split('/'), np.shape(leaf)
    if path[-1] == 'pos':
      tokens = max(tokens, math.prod(shape[-3:]))
      of_channels += total(leaf, 3)
    elif path[-1] == 'bias' and path[0] in ('neck', 'dense'):
      of_images += total(leaf, 1)
    elif path[-1] == 'bias' and path[0] != 'head':
      width = max(width, math.prod(shape[-1:]))
      of_tokens += total(leaf, 1)
  norm = tokens**0.5 * of_tokens + of_images + width**0.5 * of_channels
  return float(norm), tokens
