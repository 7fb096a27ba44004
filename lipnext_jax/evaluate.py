"""Exact certified evaluation: every example once, in full float32."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import types
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lipnext_jax import certify
from lipnext_jax import models
from lipnext_jax import train_step
from lipnext_jax.models import registry
from lipnext_jax.parallel import mesh as mesh_lib


class Evaluation(NamedTuple):
  """What is known of a split after evaluating it; one entry per example."""

  ids: np.ndarray  # Shape (n,): position in the split.
  labels: np.ndarray  # Shape (n,).
  predictions: np.ndarray  # Shape (n,).
  radii: np.ndarray  # Shape (n,): ℓ2 in [0, 1] pixel units.
  lipschitz_bound: float  # Λ that the radii were divided by.
  # Its factors, per parameter and layer, where the caller knows them.
  lipschitz_bounds: Mapping[str, Sequence[float]] = types.MappingProxyType({})

  def summary(self, epsilons: Sequence[float]) -> dict[str, Any]:
    """Counts and per cents, as `eval.json` has them."""
    cra = certify.certified_accuracy(
      self.predictions, self.radii, self.labels, epsilons
    )
    return {
      'examples': len(self.labels),
      'clean': 100 * float(np.mean(self.predictions == self.labels)),
      'cra': {f'{epsilon:.6g}': value for epsilon, value in cra.items()},
      'lipschitz_bound': self.lipschitz_bound,
      'lipschitz_bounds': dict(self.lipschitz_bounds),
    }


def make_eval_step(
  model: nn.Module, mesh: jax.sharding.Mesh
) -> Callable[..., dict[str, jax.Array]]:
  """Jits (params, batch, Λ) → predictions, radii and the batch's ids.

  The outputs are replicated, so that every process holds all of them.
  """
  model = registry.for_evaluation(model)

  def eval_step(params, batch, lipschitz):
    variables = {'params': params}
    logits: Any = model.apply(variables, train_step.to_unit(batch['image']))
    kernel = models.head_kernel(variables)
    predictions, radii = certify.certified_radius(logits, kernel, lipschitz)
    return {
      'predictions': predictions,
      'radii': radii,
      **{name: batch[name] for name in ('id', 'label', 'mask')},
    }

  return jax.jit(eval_step, out_shardings=mesh_lib.replicated(mesh))


def evaluate(
  eval_step: Callable[..., dict[str, jax.Array]],
  params: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: jax.sharding.Mesh,
  lipschitz: float,
) -> Evaluation:
  """Runs all batches; padding is dropped by its mask.

  Args:
    eval_step: from `make_eval_step`.
    params: see `train_step.evaluation_params`.
    batches: from `data.pipeline.eval_batches`.
    mesh: the devices.
    lipschitz: Λ (`certify.lipschitz_bound` of `params`).
  """
  sharding = mesh_lib.batch_sharding(mesh)
  # Rounded up into float32: Λ may only grow on its way to the device.
  scale = np.nextafter(np.float32(lipschitz), np.float32(np.inf))
  scale = jax.device_put(scale, mesh_lib.replicated(mesh))
  outputs = [
    eval_step(params, mesh_lib.put_batch(batch, sharding), scale)
    for batch in batches
  ]
  columns = jax.device_get(outputs)
  joined = {
    name: np.concatenate([column[name] for column in columns])
    for name in columns[0]
  }
  order = np.argsort(joined['id'], kind='stable')
  order = order[joined['mask'][order]]
  return Evaluation(
    ids=joined['id'][order],
    labels=joined['label'][order],
    predictions=joined['predictions'][order],
    radii=joined['radii'][order],
    lipschitz_bound=lipschitz,
  )
