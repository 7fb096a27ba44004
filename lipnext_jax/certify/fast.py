"""Certifies in float32: Λ is proved, rounding is estimated and subtracted.

Λ does not bound the features, and so not the rounding of float32: a layer may
add a large constant that the next one takes away. Fast certificates therefore
subtract from every margin f_i − f_j

    64·2⁻²⁴ (B + max|b|),    B = Λ‖x − 1/2‖ + Λ₊ Σ ‖d‖

where b are the head's biases, d all constants that the backbone adds, and Λ₊ is
the product of Λ's factors, none counted below 1. B bounds the features of each
layer, times the constants of all later layers. It is an estimate; `rigorous`
has a proof (docs/certificates.md).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax.certify import bound
from lipnext_jax.certify import norms
from lipnext_jax.certify import radius
from lipnext_jax.models import interface
from lipnext_jax.models import layers

# Counted as one more constant d. 64·2⁻²⁴ of it, 2⁻⁵¹, is more than what is lost
# where numbers below 2⁻¹²⁶ become zero: 2⁻⁶³ √(h w c) in the squares of the
# pooling, and far less in products.
_UNDERFLOW = 2.0**-33


class Constants(NamedTuple):
  """Two numbers of a model, from which fast certificates are made.

  Attributes:
    lipschitz: Λ.
    offset: Λ₊ Σ ‖d‖ + max|b|, the part of B + max|b| that is the same for all
      images.
  """

  lipschitz: Any
  offset: Any

  def on_device(self) -> 'Constants':
    """Returns the constants in float32, rounded up."""
    return Constants(*map(float32_above, self))


def float32_above(value: float) -> np.float32:
  """Returns the next float32 above `value`."""
  with np.errstate(over='ignore'):  # Infinity is above, too.
    return np.nextafter(np.float32(value), np.float32(np.inf))


def prove_constants(
  params: Any, bounds: Mapping[str, Sequence[float]] | None = None
) -> Constants:
  """Proves upper bounds on both `Constants` of a model, in float64 in NumPy.

  Args:
    params: explicit parameters of one of `lipnext_jax.models`.
    bounds: `lipschitz_bounds(params)`, if already known.

  Raises:
    ValueError: see `lipschitz_bound`; or the norm of a row of the head lies
      outside [2⁻⁶⁰, 2⁶⁰], and float32 cannot normalise it.
  """
  bounds = bounds or bound.lipschitz_bounds(params)
  params = params.get('params', params)
  kernel, bias = (
    norms.to_float64(params['head'][n]) for n in ('kernel', 'bias')
  )
  rows = np.linalg.norm(kernel, axis=-1)
  if not np.all((rows >= radius.SANE[0]) & (rows <= radius.SANE[1])):
    raise ValueError('a row of head/kernel has a norm outside [2⁻⁶⁰, 2⁶⁰].')
  factors = [max(1.0, f) for layer in bounds.values() for f in layer]
  constants = bound.sum_constants(params)[0] + _UNDERFLOW
  offset = math.prod(factors) * constants + np.max(np.abs(bias))
  # Covers up to 2²⁰ roundings of positive numbers.
  offset = float(offset * (1 + 2.0**-30))
  return Constants(bound.bound_product(bounds), offset)


def margin_floor(
  images: jax.typing.ArrayLike, constants: Constants
) -> jax.Array:
  """Estimates the part [b] of a margin that may be float32's rounding.

  Args:
    images: [b, H, W, ch] in [0, 1].
    constants: constants of the model, from `prove_constants`.
  """
  squares = jnp.square(layers.centre(images))
  norm = jnp.sqrt(jnp.sum(squares, axis=tuple(range(1, squares.ndim))))
  reach = constants.lipschitz * norm + constants.offset  # B + max|b|.
  return radius.SLACK * 2.0**-24 * reach


def rival_radii(
  model: Any, params: Any, images: jax.typing.ArrayLike, constants: Constants
) -> tuple[jax.Array, jax.Array]:
  """Computes float32 predictions [b] and `radius.rival_radii` [b, k].

  Args:
    model: explicit model, float32 at the highest precision.
    params: parameters of the model.
    images: [b, H, W, ch], floats in [0, 1] or uint8.
    constants: constants of the model, from `prove_constants`.
  """
  variables = {'params': params}
  return radius.rival_radii(
    model.apply(variables, images),
    interface.head_kernel(variables),
    constants.lipschitz,
    margin_floor(images, constants),
  )


def fast_certifier(
  model: Any, params: Any, constants: Constants | None = None
) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
  """Proves the constants; returns a function images → predictions, radii.

  Args:
    model: one of `lipnext_jax.models`, in any training precision.
    params: explicit parameters of the model (`model.explicit_params`).
    constants: `prove_constants(params)`, if already known.

  Returns:
    A function of images [b, H, W, ch], floats in [0, 1] or uint8, that returns
    predictions [b] and radii [b, k] against each class. The certified radius is
    the smallest of a row.

  Raises:
    ValueError: see `prove_constants`.

  >>> from lipnext_jax import models
  >>> model = models.LipNeXt(num_classes=3, depth=1, width=8, patch_size=4)
  >>> images = np.full((2, 8, 8, 1), 0.25, np.float32)
  >>> variables = jax.jit(model.init)(jax.random.key(0), images)
  >>> predictions, radii = fast_certifier(model, variables['params'])(images)
  >>> predictions.shape, radii.shape
  ((2,), (2, 3))
  """
  model = model.explicit()
  constants = (constants or prove_constants(params)).on_device()
  program = jax.jit(
    lambda params, images: rival_radii(model, params, images, constants)
  )

  def certify(images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    if len(images):
      radius.check_units(images)
      return program(params, images)
    predictions, radii = certify(np.zeros((1, *images.shape[1:]), np.float32))
    return predictions[:0], radii[:0]

  return certify
