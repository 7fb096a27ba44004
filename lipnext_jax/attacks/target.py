"""Targets of attacks, and the referee that judges what attacks propose.

A target is a function with certificates for the arithmetic that it runs in. It
says whether an answer changed; `exact` decides whether the point is in the
ball.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lipnext_jax import certify
from lipnext_jax.attacks import exact
from lipnext_jax.certify import rigorous
from lipnext_jax.models import interface

BATCH_SIZE = 512  # Images in one forward pass.


@functools.cache
def network(model: nn.Module) -> Callable[[Any, jax.Array], Any]:
  """Returns a flax model as a function (params, images) → logits.

  Equal models share a function, and with it compiled programs.
  """
  return lambda params, images: model.apply({'params': params}, images)


class Target(NamedTuple):
  """A function with certificates for some images.

  Certificate i claims that `apply` predicts class `predictions[i]` at all
  points of the images' dtype in the ball of `radii[i]` around `images[i]`. The
  ball is open unless `closed`.
  """

  # Hashable function of params and images [b, H, W, ch], to logits [b, k].
  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  images: np.ndarray  # Shape (n, H, W, ch), in the dtype that is attacked.
  predictions: np.ndarray  # Shape (n,): int32.
  radii: np.ndarray  # Shape (n,): float64, ℓ2 in the units of the images.
  lipschitz: float  # Λ that the radii were divided by.
  closed: bool
  batch_size: int = BATCH_SIZE

  def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which JAX computes in the images' precision."""
    return jax.enable_x64(self.images.dtype == np.float64)

  def logits(self, points: np.ndarray) -> np.ndarray:
    """Computes logits [m, k] of points [m, H, W, ch] in `arithmetic`."""
    points = np.asarray(points, self.images.dtype)
    with self.arithmetic():
      chunks = [
        np.asarray(_jit_apply(self.apply, self.params, batch))[:valid]
        for batch, valid in batches(self.batch_size, points)
      ]
    return np.concatenate(chunks)

  def answers(self, points: np.ndarray) -> np.ndarray:
    """Predicts classes [m], the lowest of a tie; −1 for non-finite logits."""
    logits = self.logits(points)
    sound = np.all(np.isfinite(logits), axis=-1)
    return np.where(sound, np.argmax(logits, axis=-1), -1)


@functools.partial(jax.jit, static_argnums=0)
def _jit_apply(apply, params, images):
  return apply(params, images)


def batches(size: int, *arrays: np.ndarray) -> Iterator[Any]:
  """Yields (*parts, valid): `size` rows of each array, of which `valid` count.

  The last part is padded by copies. With one shape there is one compiled
  program, and one order of summation.
  """
  total = len(arrays[0])
  for start in range(0, total, size):
    rows = np.minimum(np.arange(start, start + size), total - 1)
    yield (*(array[rows] for array in arrays), min(size, total - start))


def certified_target(
  certificate: str,
  model: interface.CertifiedModel,
  params: Any,
  images: np.ndarray,
  *,
  batch_size: int = BATCH_SIZE,
) -> Target:
  """Certifies images, to attack the certificates.

  Args:
    certificate: 'fast' (float32, open balls) or 'rigorous' (float64, closed).
    model: certified model, in any training precision.
    params: explicit parameters of the model.
    images: [n, H, W, ch], uint8 or floats in [0, 1].
    batch_size: number of images in one forward pass.
  """
  model = model.explicit()
  predictor = certify.Predictor(
    certify.Contents(model, params, images.shape[1:], certificate)
  )
  images = predictor.to_unit(images)
  if certificate == 'rigorous':
    model = model.explicit(jax.numpy.float64)
    params = rigorous.float64_params(params)
  batch_size = min(batch_size, len(images))
  found = [
    [column[:valid] for column in predictor(batch)]
    for batch, valid in batches(batch_size, images)
  ]
  predictions, radii = map(np.concatenate, zip(*found, strict=True))
  return Target(
    apply=network(model),
    params=params,
    images=images,
    predictions=predictions,
    radii=radii.astype(np.float64),
    lipschitz=predictor.lipschitz,
    closed=certificate == 'rigorous',
    batch_size=batch_size,
  )


class Best(NamedTuple):
  """The nearest adversarial example found so far for each image."""

  distances: np.ndarray  # Shape (n,): float64, ℓ2; infinite if none was found.
  points: np.ndarray  # Shape (n, H, W, ch): the image if none was found.
  answers: np.ndarray  # Shape (n,): int.

  def update(self, *found: np.ndarray) -> None:
    """Takes distances, points and answers where they are nearer, in place."""
    nearer = found[0] < self.distances
    for mine, new in zip(self, found, strict=True):
      mine[nearer] = new[nearer]


class Ledger:
  """The results of all attacks on one target so far.

  Attributes:
    target: target under attack.
    anywhere: nearest adversarial examples with any pixels.
    in_box: nearest adversarial examples with all pixels in [0, 1].
    broken: [n] bool, certificates with a counterexample in their ball.
    attacks: {name: {'runs', 'successes'}}.
    certified_runs: number of runs that searched up to a certified radius.
  """

  def __init__(self, target: Target):
    """Starts a ledger by judging the images themselves."""
    self.target = target
    self.anywhere, self.in_box = (
      Best(
        distances=np.full(len(target.images), np.inf),
        points=target.images.copy(),
        answers=target.predictions.astype(np.int64),
      )
      for _ in range(2)
    )
    self.broken = np.zeros(len(target.images), bool)
    self.attacks: dict[str, dict[str, int]] = {}
    self.certified_runs = 0
    self.judge('unperturbed', target.images)

  def judge(
    self, name: str, points: np.ndarray, *, at_radius: bool = False
  ) -> None:
    """Records one point per image.

    Args:
      name: name of the attack, for which runs and successes are added up.
      points: [n, H, W, ch], rounded here to the dtype of the images.
      at_radius: whether the attack searched up to the certified radius.
    """
    target = self.target
    points = np.asarray(points).astype(target.images.dtype)
    answers = target.answers(points)
    changed = answers != target.predictions
    self.broken |= changed & exact.is_inside(
      target.images, points, target.radii, closed=target.closed
    )

    distances = exact.distances(target.images, points)
    found = np.where(changed, distances, np.inf)
    self.anywhere.update(found, points, answers)
    wide = points.reshape(len(points), -1).astype(np.float64)
    boxed = np.all((wide >= 0) & (wide <= 1), axis=-1)
    self.in_box.update(np.where(boxed, found, np.inf), points, answers)

    entry = self.attacks.setdefault(name, {'runs': 0, 'successes': 0})
    entry['runs'] += len(points)
    entry['successes'] += int(np.sum(changed))
    self.certified_runs += len(points) * at_radius
