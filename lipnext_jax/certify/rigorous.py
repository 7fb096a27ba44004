"""Proves certificates that hold for float64 arithmetic, rounding included.

At all points of a ball around an image, the margins of the float64 network and
of the exact one differ by at most E_j (`rounding`, `pair_errors`). The radius
min_j (m̂_j − 2 E_j)/(Λ ‖w_i − w_j‖), rounded down, holds for both networks.
Proof: docs/certificates.md.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import errors
from lipnext_jax.certify import bound
from lipnext_jax.certify import norms as norms_lib
from lipnext_jax.certify import radius
from lipnext_jax.certify import rounding
from lipnext_jax.models import lipnext

# Largest norm of features whose squares and sums surely are finite in float64.
_LARGEST_NORM = 2.0**400


class Certificates(NamedTuple):
  """Certificates of a batch of images."""

  predictions: np.ndarray  # Shape (b,): int32.
  radii: np.ndarray  # Shape (b,): float64, ℓ2 in [0, 1] pixel units.
  rival_radii: np.ndarray  # Shape (b, k): see `radius.rival_radii`.
  logit_errors: np.ndarray  # Shape (b,): the largest E_j of each image.
  lipschitz: float  # Λ, proved.


class Head(NamedTuple):
  """Bounds on the last layer, in float64."""

  distances: np.ndarray  # Shape (k, k): >= ‖w_i − w_j‖ of the exact unit rows.
  largest_bias: float  # max|b|.
  features: int  # c.


class Proof(NamedTuple):
  """Bounds on a network, from which certificates of any image are made."""

  head: Head
  steps: Sequence[rounding.Step]  # Those of the backbone, first step first.
  lipschitz: float  # Λ.


def obstacle(model: Any, platform: str) -> str:
  """Says why a model gets no rigorous certificates on a platform, or ''.

  A TPU's float64, a pair of float32 numbers, has fewer digits than E assumes.
  """
  if platform not in ('cpu', 'gpu'):
    return f'a {platform} has no IEEE double precision'
  if not isinstance(model, lipnext.LipNeXt):
    return f'the rounding of {type(model).__name__} has no bound yet'
  return ''


def require(model: Any, platform: str) -> None:
  """Raises ConfigError if there is an `obstacle`."""
  if why := obstacle(model, platform):
    raise errors.ConfigError(
      'certificate',
      'rigorous',
      f'is not available ({why})',
      'choose fast, or certify a LipNeXt on a CPU or GPU (JAX_PLATFORMS=cpu)',
    )


def float64_params(params: Any) -> Any:
  """Converts parameters to float64 on the host; see `norms.to_float64`."""
  return jax.tree.map(norms_lib.to_float64, params)


def read_head(
  params: Any, arithmetic: norms_lib.Arithmetic = norms_lib.FLOAT64
) -> Head:
  """Bounds the distances of the head's rows, and its largest |bias|.

  The exact rows are w_j = k_j/‖k_j‖ for the stored k_j. Computed rows have a
  relative error of ρ = γ_{c+8} in each entry: c roundings in the sum of squares
  and 4 units each for √ and ÷.

  Raises:
    ValueError: the norm of a row lies outside [2⁻³⁰⁰, 2³⁰⁰], so that its
      squares could underflow or overflow.
  """
  kernel = np.asarray(params['head']['kernel'], np.float64)
  features = kernel.shape[1]
  norms = np.linalg.norm(kernel, axis=-1, keepdims=True)
  if not np.all((norms > 2.0**-300) & (norms < 2.0**300)):
    raise ValueError('a row of head/kernel has a norm outside [2⁻³⁰⁰, 2³⁰⁰].')
  rho = arithmetic.gamma(features + 2 * rounding.ELEMENTARY_UNITS)
  rows = kernel / norms
  distances = np.stack([np.linalg.norm(rows - row, axis=-1) for row in rows])
  # Each of two rows is off by ρ, and their difference's norm by c + 4 units.
  distances = distances * (1 + 2 * arithmetic.gamma(features + 4)) + 3 * rho
  bias = np.abs(np.asarray(params['head']['bias'], np.float64))
  return Head(distances, float(np.max(bias)), features)


def prove(
  params: Any, factors: Mapping[str, Sequence[float]] | None = None
) -> Proof:
  """Proves bounds on a LipNeXt from its weights, in float64 in NumPy.

  Args:
    params: parameters of the model, of any float dtype.
    factors: `bound.lipschitz_bounds(params)`, if already known.

  Raises:
    ValueError: a parameter is raw, not finite or not held by float64; or see
      `read_head`.
  """
  factors = factors or bound.lipschitz_bounds(params)
  return Proof(
    read_head(params),
    rounding.lipnext_chain(params, factors),
    bound.bound_product(factors),
  )


def pair_errors(
  reach: rounding.Reach,
  head: Head,
  predictions: np.ndarray,
  arithmetic: norms_lib.Arithmetic = norms_lib.FLOAT64,
) -> np.ndarray:
  """Computes E_j [b, k] from bounds B and e on c features, [b] or [b, k].

      E_j = ‖w_i − w_j‖ e + 2 γ_{2c+10} (B + e + max|b|)

  The error e of the features is common to both logits, so it enters through
  w_i − w_j. The second term is the rounding of both logits themselves: γ_{c+8}
  in the row, γ_c in the product, one unit in the bias.
  """
  roundings = 2 * head.features + 2 + 2 * rounding.ELEMENTARY_UNITS
  norm, error = (np.reshape(part, (len(predictions), -1)) for part in reach)
  computed = norm + error
  own = 2 * arithmetic.gamma(roundings) * (computed + head.largest_bias)
  # Entries of the rows, and products, may be flushed to zero.
  lost = 8 * head.features * arithmetic.tiny + 2.0**-700 * computed
  common = head.distances[predictions] * error
  return (common + own + lost) * rounding.OWN_ROUNDING


def radii_from_logits(
  logits: np.ndarray, norms: np.ndarray, proof: Proof
) -> Certificates:
  """Computes predictions and radii, rounded down, from float64 logits.

  The radius is 0 for ties, logits that are not finite, features that could
  overflow in the ball, and margins below 2E.

  Args:
    logits: [b, k] float64 logits, from `forward`.
    norms: [b], upper bounds on ‖x − 1/2‖ for the images x.
    proof: bounds from `prove`.
  """
  down, up = 1 - 8 * norms_lib.UNIT_ROUNDOFF, 1 + 8 * norms_lib.UNIT_ROUNDOFF
  sound = np.all(np.isfinite(logits), axis=-1) & np.isfinite(norms)
  logits = np.where(sound[:, None], logits, 0.0)
  norms = np.where(sound, norms, 0.0)
  predictions = np.argmax(logits, axis=-1).astype(np.int32)
  own = np.eye(logits.shape[-1], dtype=bool)[predictions]

  # The subtraction rounds once, and so does each factor.
  margins = (np.max(logits, axis=-1, keepdims=True) - logits) * down
  slopes = proof.lipschitz * proof.head.distances[predictions] * up

  def errors_in(ball: np.ndarray) -> np.ndarray:
    """Returns E_j [b, k] in balls [b, 1 or k]; infinity if they are vast."""
    reach = rounding.propagate(proof.steps, norms[:, None] + ball)
    rounded = pair_errors(reach, proof.head, predictions)
    return np.where(reach.norm + reach.error < _LARGEST_NORM, rounded, np.inf)

  # A radius needs E on a ball at least as large. Two are tried: the ball of the
  # nearest rival for E = 0, which covers the certified radius, and the rival's
  # own. A rival with the same row has so vast a ball that E leaves nothing.
  own_ball = margins / slopes * up
  nearest = np.min(np.where(own, np.inf, own_ball), axis=-1, keepdims=True)
  rounded = errors_in(nearest)
  sound &= np.all(np.isfinite(rounded), axis=-1)
  shared = np.minimum((margins - 2 * up * rounded) / slopes * down, nearest)
  farther = (margins - 2 * up * errors_in(own_ball)) / slopes * down
  radii = np.maximum(shared, farther)
  radii = np.where(sound[:, None] & (radii > 0), radii, 0.0)
  # The predicted class bounds no radius; a tied rival keeps 0.
  radii = np.where(own & sound[:, None], np.inf, radii)
  return Certificates(
    predictions=predictions,
    radii=np.min(radii, axis=-1),
    rival_radii=radii,
    logit_errors=np.max(np.where(own, 0.0, rounded), axis=-1),
    lipschitz=proof.lipschitz,
  )


def forward(
  model: Any, params: Any, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Computes float64 logits [b, k], and upper bounds [b] on ‖x − 1/2‖.

  Call it under `jax.enable_x64(True)`.
  """
  logits = model.explicit(jnp.float64).apply({'params': params}, images)
  pixels = (images - 0.5).reshape(len(images), -1)
  norms = jnp.sqrt(jnp.sum(jnp.square(pixels), axis=-1))
  roundings = pixels.shape[-1] + 2 + rounding.ELEMENTARY_UNITS
  return logits, norms * (1 + 2 * norms_lib.FLOAT64.gamma(roundings))


def to_unit64(images: np.ndarray) -> np.ndarray:
  """Converts floats in [0, 1] or uint8 (divided by 255) to float64, in NumPy.

  Raises:
    ValueError: another dtype, or floats that are whole numbers above 1.
  """
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images.astype(np.float64) / 255
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'{images.dtype} images: give floats in [0, 1], or uint8.')
  radius.check_units(images)
  return norms_lib.to_float64(images)


_forward = jax.jit(forward, static_argnums=0)


def rigorous_certifier(
  model: Any,
  params: Any,
  factors: Mapping[str, Sequence[float]] | None = None,
) -> Callable[[np.ndarray], Certificates]:
  """Proves Λ and E's constants; returns a function images → `Certificates`.

  Args:
    model: `LipNeXt`, in any training precision.
    params: stored parameters of the model, of any float dtype.
    factors: `bound.lipschitz_bounds(params)`, if already known.

  Returns:
    A function of images [b, H, W, ch], floats in [0, 1] or uint8, which it
    converts by `to_unit64`. The certificates are about these float64 images.

  Raises:
    ValueError: a parameter is raw, not finite or not held by float64.
    ConfigError: the model is no LipNeXt, or the default device has no IEEE
      double precision.

  >>> from lipnext_jax import models
  >>> model = models.LipNeXt(num_classes=3, depth=1, width=8, patch_size=4)
  >>> images = np.full((2, 8, 8, 1), 0.25)
  >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.float32(images))
  >>> found = rigorous_certifier(model, variables['params'])(images)
  >>> found.radii.dtype, bool(found.logit_errors.max() < 1e-12)
  (dtype('float64'), True)
  """
  require(model, jax.default_backend())
  params = float64_params(params)
  proof = prove(params, factors)

  def certify(images: np.ndarray) -> Certificates:
    images = to_unit64(images)
    if not len(images):  # An empty batch cannot be cut into patches.
      some: Any = certify(np.zeros((1, *images.shape[1:])))
      return Certificates(*(f[:0] if np.ndim(f) else f for f in some))
    with jax.enable_x64(True):
      logits, norms = map(np.asarray, _forward(model, params, images))
    return radii_from_logits(logits, norms, proof)

  return certify


def rigorous_radius(
  model: Any, params: Any, images: np.ndarray
) -> Certificates:
  """Certifies one batch of images; see `rigorous_certifier`."""
  return rigorous_certifier(model, params)(images)
