"""Proves an upper bound on the Lipschitz constant of stored parameters.

It is the product of bounds on the norms of all operators that a backbone
applies, in float64 with rounding accounted for: matrices in `norms`,
convolutions in `convolution`. The name of an array tells which operator it is.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any

import jax
import numpy as np

from lipnext_jax.certify import convolution
from lipnext_jax.certify import norms
from lipnext_jax.models import parametrizations
from lipnext_jax.optim import recipe
from lipnext_jax.optim import trees

# Largest Σ‖c‖ a token that `lipschitz_bound` accepts; the digits model has 15.
LARGEST_CONSTANTS = 2.0**10


def float32_above(value: float) -> np.float32:
  """Returns the next float32 above `value`, for Λ on a device."""
  with np.errstate(over='ignore'):  # Infinity is above, too.
    return np.nextafter(np.float32(value), np.float32(np.inf))


def operator_factor(path: str, norm: float) -> float:
  """Bounds the constant of the operator that a model makes of a matrix.

  A block of LipNeXt is M (I + Rᵀ(S − I)R). The factor of M is ‖M‖₂, and that of
  R is 2·max(1, ‖R‖₂²) − 1 (docs/certificates.md).

  Args:
    path: of the leaf, 'blocks/R'.
    norm: a bound on max(1, ‖W‖₂).

  >>> operator_factor('blocks/M', 1.25), operator_factor('blocks/R', 1.0)
  (1.25, 1.0000000000000009)
  """
  if path.rsplit('/', maxsplit=1)[-1] != 'R':
    return norm
  # Square and difference round by u of 2·norm² <= 2·factor each.
  return (2 * norm * norm - 1) * (1 + 8 * norms.UNIT_ROUNDOFF)


def check_explicit(name: str) -> None:
  """Raises ValueError for a leaf that is mapped to the matrix to apply."""
  if name.endswith(parametrizations.RAW):
    raise ValueError(
      f'{name} is mapped before it is applied; certify '
      'model.explicit_params(params), what is applied.'
    )


def lipschitz_bounds(
  params: Any,
  label_fn: Callable[[Any], Any] = recipe.orthogonal_labels,
  factor_fn: Callable[[str, float], float] = operator_factor,
  part: tuple[int, int] = (0, 1),
) -> dict[str, list[float]]:
  """Bounds every operator of every layer: the factors of `lipschitz_bound`.

  Leaves that `label_fn` calls orthogonal are matrices [..., m, n]; leaves named
  `conv_zero`, `conv_circular` and `spectrum` are convolutions on the grid of
  `stem/pos`, see `convolution`. Everything else has to be 1-Lipschitz.

  Args:
    params: as the next two, see `lipschitz_bound`.
    label_fn: marks the matrices.
    factor_fn: bounds what is made of one.
    part: (i, n) to bound every n-th matrix alone, from the i-th on, with 0 for
      the others; the maximum over all n parts is the whole.

  Raises:
    ValueError: a raw leaf, or a matrix that float64 does not hold.
  """
  labels = jax.tree.leaves(label_fn(params))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  bounds: dict[str, list[float]] = {}
  index, parts = part
  mine = (i % parts == index for i in itertools.count())
  for (path, leaf), label in zip(leaves, labels, strict=True):
    name = trees.path_name(path)
    check_explicit(name)
    kind = name.rsplit('/', maxsplit=1)[-1]
    if kind in convolution.BOUNDS:
      grid = _grid(leaves, name)
      bounds[name] = convolution.BOUNDS[kind](np.asarray(leaf), grid)
    if label != 'orthogonal':
      continue
    stack = np.asarray(leaf)
    bounds[name] = [
      factor_fn(name, norms.spectral_norm_bound(w)) if next(mine) else 0.0
      for w in stack.reshape(-1, *stack.shape[-2:])
    ]
  return bounds


def _grid(leaves: Any, name: str) -> tuple[int, int]:
  """Returns (h, w) of the positional term [h, w, 1] of a convolutional stem."""
  for path, leaf in leaves:
    if trees.path_name(path).endswith('stem/pos'):
      return leaf.shape[:2]
  raise ValueError(f'lipschitz_bound: no stem/pos tells the grid of {name}.')


def sum_constants(params: Any) -> tuple[float, int]:
  """Sums the norms of all constants that a backbone adds.

  A bias [..., c] of the stem or of a block is added to every token, one of a
  neck or a dense layer once, a positional term [..., h, w, 1] to every channel.
  Returns Σ ‖c‖ over the leaves `bias` and `pos` outside of the head, and the
  number of tokens.

  >>> sum_constants({'stem': {'bias': np.array([3.0, 4.0])}})
  (5.0, 1)
  """
  biases: list[np.ndarray] = []
  of_images: list[np.ndarray] = []
  positions: list[np.ndarray] = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = trees.path_name(path).removeprefix('params/')
    group, kind = name.split('/')[0], name.split('/')[-1]
    if kind == 'pos':
      positions.append(norms.to_float64(leaf))
    elif kind == 'bias' and group != 'head':
      kept = of_images if group in ('neck', 'dense') else biases
      kept.append(norms.to_float64(leaf))
  tokens = max((math.prod(p.shape[-3:]) for p in positions), default=1)
  width = max((b.shape[-1] for b in biases if b.ndim), default=1)

  def total(constants, axes):
    size = math.prod(constants.shape[-axes:])
    rows = constants.reshape(-1, size)
    return np.sum(np.linalg.norm(rows, axis=-1))

  norm = tokens**0.5 * sum(total(b, 1) for b in biases)
  norm += sum(total(b, 1) for b in of_images)
  norm += width**0.5 * sum(total(p, 3) for p in positions)
  return float(norm), tokens


def lipschitz_bound(
  params: Any,
  label_fn: Callable[[Any], Any] = recipe.orthogonal_labels,
  factor_fn: Callable[[str, float], float] = operator_factor,
) -> float:
  """Proves Λ, an upper bound on the backbone's ℓ2 Lipschitz constant.

      Λ = ‖Q‖₂ Π ‖M‖₂ (2·max(1, ‖R‖₂²) − 1)

  for LipNeXt, in bounds on the norms of the stored matrices, and the product
  over all orthogonal matrices and convolutions for other models. The rest of a
  backbone (β-Abs, MinMax, pooling, biases) is 1-Lipschitz as it stands. The
  proof is for exact arithmetic on the stored numbers.

  It does not cover float32's rounding of constants that one layer adds and
  another takes away. Those whose norms sum to more than 2¹⁰ a token are refused
  here; with fewer, only radii of bare logits (`certified_radius`) below
  64·2⁻²⁴·2¹⁰ = 0.004 times the root of the number of tokens can be rounding.
  `fast_certifier` and `rigorous_certifier` take any constants.

  Args:
    params: the model's explicit parameters (or `{'params': …}`), fetched to
      the host leaf by leaf.
    label_fn: parameters → tree of 'orthogonal' / 'euclidean'.
    factor_fn: ('a/b/leaf', bound on max(1, ‖W‖₂)) → factor, for models that
      apply their matrices otherwise.

  Returns:
    A Python float >= the true constant.

  Raises:
    ValueError: no orthogonal parameter; an unlabelled or raw one, one that is
      not finite or not held by float64; too large biases and positional terms.

  >>> params = {'blocks': {'R': np.eye(4)[None], 'M': 1.001 * np.eye(4)[None]}}
  >>> 1.001 <= lipschitz_bound(params) < 1.0011
  True
  """
  total, tokens = sum_constants(params)
  constants = total / tokens**0.5
  if not constants <= LARGEST_CONSTANTS:
    raise ValueError(
      f'lipschitz_bound: biases and positional terms of norm {constants:.3g} '
      f'a token, more than {LARGEST_CONSTANTS:g}, can hide changes in the '
      'rounding of float32; certify with rigorous_certifier or fast_certifier.'
    )
  return bound_product(lipschitz_bounds(params, label_fn, factor_fn))


def bound_product(bounds: Mapping[str, Sequence[float]]) -> float:
  """Multiplies the factors of `lipschitz_bounds` and rounds up.

  Raises:
    ValueError: there is none.
  """
  if not bounds:
    raise ValueError('lipschitz_bound found no orthogonal parameter to bound.')
  factors = [factor for layers in bounds.values() for factor in layers]
  # Each multiplication rounds by u at most.
  return math.prod(factors) * (1 + 2 * len(factors) * norms.UNIT_ROUNDOFF)
