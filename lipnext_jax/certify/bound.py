"""Proves an upper bound Λ on the Lipschitz constant of a model's backbone.

The backbone is everything before the head. Its activations, its pooling and the
constants that it adds (biases, positions) are 1-Lipschitz for any weights. The
norm of every other operator is bounded from the stored weights: of matrices in
`norms`, of convolutions in `convolution`. Λ is the product of these factors, in
float64 with rounding accounted for. An array's name tells which operator it is.
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


def operator_factor(path: str, norm: float) -> float:
  """Bounds the Lipschitz constant of the operator that applies a matrix W.

  A block of LipNeXt applies M (I + Rᵀ(S − I)R). The factor of M is ‖M‖₂, and
  that of R is 2·max(1, ‖R‖₂²) − 1 (proof in docs/certificates.md). The factor
  of any other matrix is its norm.

  Args:
    path: name of W, e.g. 'blocks/R'.
    norm: upper bound on max(1, ‖W‖₂).

  >>> operator_factor('blocks/M', 1.25), operator_factor('blocks/R', 1.0)
  (1.25, 1.0000000000000009)
  """
  if _kind(path) != 'R':
    return norm
  # Three roundings, each of at most 2u times the factor: 8u covers them.
  return (2 * norm * norm - 1) * (1 + 8 * norms.UNIT_ROUNDOFF)


def lipschitz_bound(
  params: Any, label_fn: Callable[[Any], Any] = recipe.orthogonal_labels
) -> float:
  """Proves Λ, an upper bound on the backbone's ℓ2 Lipschitz constant.

  For LipNeXt, with an upper bound in the place of each norm,

      Λ = ‖Q‖₂ Π ‖M‖₂ (2·max(1, ‖R‖₂²) − 1).

  For other models, Λ is the product over all orthogonal matrices and
  convolutions. Λ bounds the network in exact arithmetic; the rounding of this
  computation is included, and that of the network is not.

  Λ does not depend on the constants that layers add, but large ones cost the
  logits digits in float32, and `certify.certified_radius` takes the logits for
  exact. So constants whose norms sum to more than 2¹⁰·√tokens are refused. With
  smaller ones, rounding may fake a radius of up to 0.004·√tokens. That is an
  estimate, of 64 units of rounding: 64·2⁻²⁴·2¹⁰·√tokens.

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
    which are the leaves named `conv_zero`, `conv_circular` (kernels) and
    `spectrum` (a matrix per frequency).

  Raises:
    ValueError: a leaf has no label, is raw, not finite or not held by float64.
  """
  labels = jax.tree.leaves(label_fn(params))
  leaves = trees.named_leaves(params)
  bounds: dict[str, list[float]] = {}
  index, parts = part
  in_part = (i % parts == index for i in itertools.count())
  for (name, leaf), label in zip(leaves.items(), labels, strict=True):
    if name.endswith(parametrizations.RAW):
      raise ValueError(
        f'{name} is mapped to a matrix before it is applied; certify '
        'model.explicit_params(params).'
      )
    stack = np.asarray(leaf)
    kind = _kind(name)
    if kind in convolution.BOUNDS:
      grid = _grid(leaves, name)
      ndim, bound = convolution.BOUNDS[kind]
      operators = stack.reshape(-1, *stack.shape[-ndim:])
      bounds[name] = [bound(operator, grid) for operator in operators]
    if label == 'orthogonal':
      bounds[name] = [
        operator_factor(name, norms.spectral_norm_bound(w))
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
  of_tokens: list[np.ndarray] = []
  of_images: list[np.ndarray] = []
  positions: list[np.ndarray] = []
  for name, leaf in trees.named_leaves(params).items():
    group, kind = name.removeprefix('params/').split('/')[0], _kind(name)
    if kind == 'pos':
      positions.append(norms.to_float64(leaf))
    elif kind == 'bias' and group != 'head':
      biases = of_images if group in ('neck', 'dense') else of_tokens
      biases.append(norms.to_float64(leaf))
  tokens = max((math.prod(p.shape[-3:]) for p in positions), default=1)
  width = max((b.shape[-1] for b in of_tokens if b.ndim), default=1)

  def total(constants, axes):
    size = math.prod(constants.shape[-axes:])
    rows = constants.reshape(-1, size)
    return np.sum(np.linalg.norm(rows, axis=-1))

  norm = tokens**0.5 * sum(total(b, 1) for b in of_tokens)
  norm += sum(total(b, 1) for b in of_images)
  norm += width**0.5 * sum(total(p, 3) for p in positions)
  return float(norm), tokens


def float32_above(value: float) -> np.float32:
  """Returns the next float32 above `value`."""
  with np.errstate(over='ignore'):  # Infinity is above, too.
    return np.nextafter(np.float32(value), np.float32(np.inf))


def _grid(leaves: Mapping[str, Any], name: str) -> tuple[int, int]:
  """Returns (h, w) of `stem/pos` [h, w, 1], for the convolution `name`."""
  for other, leaf in leaves.items():
    if other.endswith('stem/pos'):
      return leaf.shape[:2]
  raise ValueError(f'no stem/pos tells the grid of {name}.')


def _kind(name: str) -> str:
  """Returns the last part of 'a/b/leaf'."""
  return name.rpartition('/')[2]
