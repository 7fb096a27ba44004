"""Targets of attacks: functions in their own arithmetic, with certificates."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lipnext_jax import certify
from lipnext_jax.certify import rigorous
from lipnext_jax.models import interface
from lipnext_jax.models import layers

BATCH_SIZE = 512  # Images in one forward pass.


@dataclasses.dataclass(frozen=True)
class Network:
  """A flax model as a function; equal models share compiled programs.

  >>> Network(nn.Dense(2)) == Network(nn.Dense(2))
  True
  """

  model: nn.Module

  def __call__(self, params: Any, images: jax.Array) -> jax.Array:
    """Computes logits [b, k] of images [b, H, W, ch]."""
    logits: Any = self.model.apply({'params': params}, images)
    return logits


class Target(NamedTuple):
  """Certificates, and the arithmetic that they are about.

  The claim: at every point of the ball of `radii[i]` around `images[i]` whose
  coordinates are numbers of the images' dtype, `apply` answers
  `predictions[i]`. The ball is open unless `closed`.
  """

  # (params, images [b, H, W, ch]) → logits [b, k]; hashable.
  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  images: np.ndarray  # Shape (n, H, W, ch), in the format that is attacked.
  predictions: np.ndarray  # Shape (n,): int32.
  radii: np.ndarray  # Shape (n,): float64, ℓ2 in the units of the images.
  lipschitz: float  # Λ that the radii were divided by.
  closed: bool
  batch_size: int = BATCH_SIZE

  def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
    """Enters the arithmetic that the certificates are about."""
    return jax.enable_x64(self.images.dtype == np.float64)

  def logits(self, points: np.ndarray) -> np.ndarray:
    """Computes logits [m, k] of points [m, H, W, ch] in that arithmetic."""
    points = np.asarray(points, self.images.dtype)
    with self.arithmetic():
      chunks = [
        np.asarray(_jit_apply(self.apply, self.params, batch))[:valid]
        for batch, valid in batches(self.batch_size, points)
      ]
    return np.concatenate(chunks)

  def answers(self, points: np.ndarray) -> np.ndarray:
    """Predicts [m] classes, the lowest of a tie; −1: logits are not finite."""
    logits = self.logits(points)
    sound = np.all(np.isfinite(logits), axis=-1)
    return np.where(sound, np.argmax(logits, axis=-1), -1)


@functools.partial(jax.jit, static_argnums=0)
def _jit_apply(apply, params, images):
  return apply(params, images)


def batches(size: int, *arrays: np.ndarray) -> Iterator[Any]:
  """Yields (*parts, valid): parts of `size` rows, the last padded by copies.

  One shape means one compiled program and one order of summation.
  """
  total = len(arrays[0])
  for start in range(0, total, size):
    rows = np.minimum(np.arange(start, start + size), total - 1)
    yield (*(array[rows] for array in arrays), min(size, total - start))


def fast_target(
  model: interface.CertifiedModel,
  params: Any,
  images: np.ndarray,
  *,
  batch_size: int = BATCH_SIZE,
) -> Target:
  """Certifies images in float32, as evaluation does: open balls.

  Args:
    model: in any precision; evaluated in float32 at the highest one.
    params: the weights that are certified.
    images: [n, H, W, ch], uint8 or float32 in [0, 1].
    batch_size: images in one forward pass.
  """
  images = np.asarray(layers.to_unit(images), np.float32)
  batch_size = min(batch_size, len(images))
  constants = certify.prove_constants(params)
  certifier = certify.fast_certifier(model, params, constants)
  found = [
    (certifier(batch), valid) for batch, valid in batches(batch_size, images)
  ]
  radii = np.concatenate([np.min(r, axis=-1)[:v] for (_, r), v in found])
  return Target(
    apply=Network(model.explicit()),
    params=params,
    images=images,
    predictions=np.concatenate([p[:v] for (p, _), v in found]),
    radii=radii.astype(np.float64),
    lipschitz=constants.lipschitz,
    closed=False,
    batch_size=batch_size,
  )


def rigorous_target(
  model: interface.CertifiedModel,
  params: Any,
  images: np.ndarray,
  *,
  batch_size: int = BATCH_SIZE,
) -> Target:
  """Certifies images in float64 and subtracts its rounding: closed balls.

  The arguments are those of `fast_target`.
  """
  images = rigorous.to_unit64(images)
  batch_size = min(batch_size, len(images))
  certifier = certify.rigorous_certifier(model, params)
  found = [
    (certifier(batch), valid) for batch, valid in batches(batch_size, images)
  ]
  return Target(
    apply=Network(rigorous.float64_model(model)),
    params=rigorous.float64_params(params),
    images=images,
    predictions=np.concatenate([c.predictions[:v] for c, v in found]),
    radii=np.concatenate([c.radii[:v] for c, v in found]),
    lipschitz=found[0][0].lipschitz,
    closed=True,
    batch_size=batch_size,
  )


TARGETS = {'fast': fast_target, 'rigorous': rigorous_target}
