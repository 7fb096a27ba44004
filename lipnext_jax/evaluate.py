"""Exact certified evaluation: every example once, fast or rigorous.

`fast` runs in float32 at the highest product precision and certifies margins
that are far above its rounding; `rigorous` runs in float64 and subtracts it.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import types
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import certify
from lipnext_jax.certify import chain
from lipnext_jax.certify import fast
from lipnext_jax.certify import rigorous
from lipnext_jax.models import interface
from lipnext_jax.models import registry
from lipnext_jax.parallel import distributed
from lipnext_jax.parallel import mesh as mesh_lib


class Evaluation(NamedTuple):
  """What is known of a split after evaluating it; one entry per example."""

  ids: np.ndarray  # Shape (n,): position in the split.
  labels: np.ndarray  # Shape (n,).
  predictions: np.ndarray  # Shape (n,).
  radii: np.ndarray  # Shape (n,): ℓ2 in [0, 1] pixel units.
  lipschitz_bound: float  # Λ that the radii were divided by.
  certificate: str = 'fast'  # One of `certify.CERTIFICATES`.
  logit_error: float | None = None  # Largest E that was subtracted, rigorous.
  # Its factors, per parameter and layer, where the caller knows them.
  lipschitz_bounds: Mapping[str, Sequence[float]] = types.MappingProxyType({})

  def summary(self, epsilons: Sequence[float]) -> dict[str, Any]:
    """Counts and per cents, as `eval.json` has them."""
    cra = certify.certified_accuracy(
      self.predictions, self.radii, self.labels, epsilons
    )
    summary = {
      'examples': len(self.labels),
      'clean': 100 * float(np.mean(self.predictions == self.labels)),
      'cra': {f'{epsilon:.6g}': value for epsilon, value in cra.items()},
      'lipschitz_bound': self.lipschitz_bound,
      'certificate': self.certificate,
      'lipschitz_bounds': dict(self.lipschitz_bounds),
    }
    if self.logit_error is not None:
      summary['logit_error'] = self.logit_error
    return summary


def make_eval_step(
  model: interface.CertifiedModel, mesh: jax.sharding.Mesh
) -> Callable[..., dict[str, jax.Array]]:
  """Jits (params, batch, constants) → predictions, radii and the batch's ids.

  The outputs are replicated, so that every process holds all of them.
  """
  model = registry.for_evaluation(model)

  def eval_step(params, batch, constants):
    predictions, radii = fast.rival_radii(
      model, params, batch['image'], constants
    )
    return {
      'predictions': predictions,
      'radii': jnp.min(radii, axis=-1),
      **{name: batch[name] for name in ('id', 'label', 'mask')},
    }

  return jax.jit(eval_step, out_shardings=mesh_lib.replicated(mesh))


def make_rigorous_step(
  model: interface.CertifiedModel, mesh: jax.sharding.Mesh
) -> Callable[..., dict[str, jax.Array]]:
  """Jits (params, batch), both float64, → logits, norms and the batch's ids.

  To be called under `jax.enable_x64(True)`.
  """

  def rigorous_step(params, batch):
    logits, norms = rigorous.forward(model, params, batch['image'])
    return {
      'logits': logits,
      'norms': norms,
      **{name: batch[name] for name in ('id', 'label', 'mask')},
    }

  return jax.jit(rigorous_step, out_shardings=mesh_lib.replicated(mesh))


def evaluate(
  eval_step: Callable[..., dict[str, jax.Array]],
  params: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: jax.sharding.Mesh,
  constants: certify.Constants,
) -> Evaluation:
  """Runs all batches in float32; padding is dropped by its mask.

  Args:
    eval_step: from `make_eval_step`.
    params: see `models.interface.certified_params`.
    batches: from `data.pipeline.eval_batches`.
    mesh: the devices.
    constants: `certify.prove_constants` of `params`, or some that are assumed
      and on the devices already.
  """
  sharding = mesh_lib.batch_sharding(mesh)
  on_device = constants
  if not isinstance(constants.lipschitz, jax.Array):
    replicated = mesh_lib.replicated(mesh)
    on_device = jax.device_put(constants.on_device(), replicated)
  columns = _join(
    eval_step(params, mesh_lib.put_batch(batch, sharding), on_device)
    for batch in batches
  )
  return Evaluation(
    ids=columns['id'],
    labels=columns['label'],
    predictions=columns['predictions'],
    radii=columns['radii'],
    lipschitz_bound=float(jax.device_get(constants.lipschitz)),
  )


def evaluate_rigorous(
  rigorous_step: Callable[..., dict[str, jax.Array]],
  params: Any,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: jax.sharding.Mesh,
) -> Evaluation:
  """Runs all batches in float64 and subtracts what that may have rounded.

  Args:
    rigorous_step: from `make_rigorous_step`.
    params: as stored, sharded as they are; widened here, exactly.
    batches: from `data.pipeline.eval_batches`.
    mesh: the devices.

  Raises:
    ConfigError: the devices have no IEEE double precision.
  """
  rigorous.require_double(mesh.devices.flat[0].platform)
  sharding = mesh_lib.batch_sharding(mesh)
  host = jax.tree.map(distributed.to_host, params)
  head, steps = rigorous.read_head(host), chain.lipnext_chain(host)
  image_size = 0

  def columns_of(batch):
    nonlocal image_size
    image_size = batch['image'][0].size
    batch = {**batch, 'image': rigorous.to_unit64(batch['image'])}
    return rigorous_step(wide, mesh_lib.put_batch(batch, sharding))

  with jax.enable_x64(True):
    wide = jax.tree.map(widen, params, host)
    columns = _join(map(columns_of, batches))
  norms = rigorous.raise_norms(columns['norms'], image_size)
  found = rigorous.radii_from_logits(columns['logits'], norms, head, steps)
  return Evaluation(
    ids=columns['id'],
    labels=columns['label'],
    predictions=found.predictions,
    radii=found.radii,
    lipschitz_bound=found.lipschitz,
    certificate='rigorous',
    # Of what is certified: features that could overflow have no bound.
    logit_error=float(np.max(found.logit_errors[found.radii > 0], initial=0)),
  )


def prove_bounds(params: Any) -> dict[str, list[float]]:
  """Bounds every operator of what is certified, the work split over processes.

  In float64, on the hosts: minutes for a billion parameters.

  Args:
    params: see `models.interface.certified_params`; on the host.

  Returns:
    See `certify.lipschitz_bounds`.
  """
  bounds = certify.lipschitz_bounds(
    params, part=(jax.process_index(), jax.process_count())
  )
  return {
    name: distributed.largest(np.array(factors)).tolist()
    for name, factors in bounds.items()
  }


def widen(p: jax.Array, host: np.ndarray) -> jax.Array:
  """`p` in float64, sharded as it is, from the copy `host` of all of it.

  On the host: XLA takes float32's subnormal numbers for zero when it converts.
  To be called under `jax.enable_x64(True)`.
  """
  wide = host.astype(np.float64)
  if not p.committed:  # Free to join whatever mesh the images are on.
    return jnp.asarray(wide)
  return jax.make_array_from_callback(p.shape, p.sharding, wide.__getitem__)


def _join(outputs: Iterable[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
  """Columns of all batches on the host, by id, without the padding."""
  columns = jax.device_get(list(outputs))
  joined = {
    name: np.concatenate([column[name] for column in columns])
    for name in columns[0]
  }
  order = np.argsort(joined['id'], kind='stable')
  order = order[joined['mask'][order]]
  return {name: column[order] for name, column in joined.items()}
