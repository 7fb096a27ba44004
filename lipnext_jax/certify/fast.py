"""Certifies in float32: Λ is proved, rounding is estimated and subtracted.

The proof behind a radius (`radius`) is about exact logits. Those of float32 are
off by some multiple of 2⁻²⁴ times the numbers they came from, which Λ does not
bound: constants that one layer adds and another one takes away again can be as
large as whoever made the weights wants them. So every margin f_p − f_j loses

    64·2⁻²⁴ (B + max|b|),    B >= ‖a‖ for the features a of x

with B = Λ‖x − 1/2‖ + Λ₊ Σ ‖c‖ over all constants c that the backbone adds, and
Λ₊ the product of its factors, none counted below 1. No feature on the way, nor
what later layers make of its rounding, is larger. That is far more than float32
rounds by. It takes next to nothing from trained models and everything from
constants made to fool it, but it is no proof. `rigorous` is one:
docs/certificates.md.
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
from lipnext_jax.models import head
from lipnext_jax.models import layers

CLAIM = (
  'fast: float32 at the highest product precision; 64 units of rounding are '
  'subtracted from every margin, an estimate and no proof'
)


class Constants(NamedTuple):
  """The two numbers that a fast certificate needs of a model's parameters.

  Attributes:
    lipschitz: Λ.
    offset: Λ₊ Σ ‖c‖ + max|b|, which is B + max|b| where x = 1/2.
  """

  lipschitz: Any
  offset: Any

  def on_device(self) -> 'Constants':
    """Returns them in float32, rounded up, for programs that take them."""
    return Constants(*map(bound.float32_above, self))


def prove_constants(
  params: Any, bounds: Mapping[str, Sequence[float]] | None = None
) -> Constants:
  """Proves Λ and bounds the constants of a model, in float64 on the host.

  Args:
    params: the explicit parameters of one of `lipnext_jax.models`.
    bounds: `lipschitz_bounds(params)`, where that is known already.

  Raises:
    ValueError: see `lipschitz_bound`; or the head has rows whose norm lies
      outside of [2⁻⁶⁰, 2⁶⁰], so that float32 cannot normalise them.
  """
  bounds = bounds or bound.lipschitz_bounds(params)
  params = params.get('params', params)
  kernel, bias = (
    norms.to_float64(params['head'][n]) for n in ('kernel', 'bias')
  )
  rows = np.linalg.norm(kernel, axis=-1)
  if not np.all((rows >= radius.SANE[0]) & (rows <= radius.SANE[1])):
    raise ValueError('prove_constants: head/kernel has rows of no usable norm.')
  factors = [max(1.0, f) for layer in bounds.values() for f in layer]
  offset = math.prod(factors) * bound.sum_constants(params)[0]
  offset += np.max(np.abs(bias))
  # Fewer than 2²⁰ roundings, all of positive numbers.
  offset = float(offset * (1 + 2.0**-30))
  return Constants(bound.bound_product(bounds), offset)


def margin_floor(
  images: jax.typing.ArrayLike, constants: Constants
) -> jax.Array:
  """Estimates how much of a margin may be float32's rounding: [b].

  Args:
    images: [b, H, W, ch] in [0, 1].
    constants: of the model.
  """
  squares = jnp.square(layers.centre(images))
  norm = jnp.sqrt(jnp.sum(squares, axis=tuple(range(1, squares.ndim))))
  reach = constants.lipschitz * norm + constants.offset  # B + max|b|.
  return radius.SLACK * 2.0**-24 * reach


def rival_radii(
  model: Any, params: Any, images: jax.typing.ArrayLike, constants: Constants
) -> tuple[jax.Array, jax.Array]:
  """Computes float32 predictions [b] and radii [b, k] against every rival.

  Pure JAX, to be compiled.

  Args:
    model: explicit, float32 at the highest precision.
    params: of that model.
    images: [b, H, W, ch], floats in [0, 1] or uint8.
    constants: from `prove_constants`.
  """
  variables = {'params': params}
  return radius.rival_radii(
    model.apply(variables, images),
    head.head_kernel(variables),
    constants.lipschitz,
    margin_floor(images, constants),
  )


def fast_certifier(
  model: Any, params: Any, constants: Constants | None = None
) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
  """Proves the constants once; returns images → predictions, rival radii.

  Args:
    model: one of `lipnext_jax.models`, in any training precision.
    params: its explicit parameters (`model.explicit_params`).
    constants: `prove_constants(params)`, where they are known already.

  Returns:
    A function of images [b, H, W, ch], floats in [0, 1] or uint8. The smallest
    entry of a row of radii [b, k] is the certified radius.

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
