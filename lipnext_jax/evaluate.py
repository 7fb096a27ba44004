"""Certifies every example of a split exactly once.

Fast certificates are computed in float32 at the highest precision, and cover
margins far above its rounding. Rigorous ones are computed in float64, minus a
bound on its rounding.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipnext_jax import certify
from lipnext_jax import parallel
from lipnext_jax.certify import fast
from lipnext_jax.certify import rigorous
from lipnext_jax.models import interface

Batch = dict[str, Any]  # 'image', 'label', 'id', 'mask': a row per example.


class Evaluation(NamedTuple):
  """The certificates of a split, one entry per example."""

  ids: np.ndarray  # Shape (n,): positions in the split.
  labels: np.ndarray  # Shape (n,).
  predictions: np.ndarray  # Shape (n,).
  radii: np.ndarray  # Shape (n,): ℓ2 in [0, 1] pixel units.
  lipschitz_bound: float  # Λ, the divisor of the radii.
  certificate: str = 'fast'  # One of `certify.CERTIFICATES`.
  logit_error: float | None = None  # Largest E subtracted, if rigorous.
  # Factors of Λ by parameter, one per layer; empty if Λ was not proved.
  lipschitz_bounds: Mapping[str, Sequence[float]] = {}

  def summary(self, epsilons: Sequence[float]) -> dict[str, Any]:
    """Returns the numbers of `eval.json`, with the CRA at each ε."""
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


class Evaluator:
  """A compiled evaluation of a model, spread over all devices.

  Args:
    model: model to evaluate, explicit or not.
    mesh: devices.
    certificate: kind of certificate that `certify` gives, one of
      `certify.CERTIFICATES`.

  Raises:
    ConfigError: the certificate is rigorous, and the model or the devices
      support fast ones alone.
  """

  def __init__(
    self,
    model: interface.CertifiedModel,
    mesh: jax.sharding.Mesh,
    certificate: str = 'fast',
  ):
    if certificate == 'rigorous':
      rigorous.require(model, mesh.devices.flat[0].platform)
    self._model = model.explicit()
    self._certificate = certificate
    self._on_batch = parallel.batch_sharding(mesh)
    self._on_all = parallel.replicated(mesh)
    # Replicated outputs give every process the whole `Evaluation`.
    jit = functools.partial(jax.jit, out_shardings=self._on_all)
    self._fast_step = jit(self._run_fast)
    self._rigorous_step = jit(self._run_rigorous)
    self._lipschitz = jit(lambda p: jnp.float32(self._model.lipschitz(p)))

  def monitor(self, params: Any, batches: Iterable[Batch]) -> Evaluation:
    """Certifies with the constant K of training, which is not proved."""
    constant = float(jax.device_get(self._lipschitz(params)))
    constants = fast.Constants(constant, 0.0)
    return self.certify_fast(params, batches, constants)

  def certify(self, params: Any, batches: Iterable[Batch]) -> Evaluation:
    """Proves Λ of the weights and certifies every example once.

    The processes share the proof: a billion parameters take minutes.

    Args:
      params: certified weights on the devices.
      batches: batches of `data.pipeline.eval_batches`; padding is dropped.
    """
    host = jax.tree.map(parallel.to_host, params)
    part = jax.process_index(), jax.process_count()
    factors = {
      name: parallel.largest(np.array(bounds)).tolist()
      for name, bounds in certify.lipschitz_bounds(host, part=part).items()
    }
    if self._certificate == 'rigorous':
      result = self._certify_rigorous(params, host, factors, batches)
    else:
      constants = fast.prove_constants(host, factors)
      result = self.certify_fast(params, batches, constants)
    return result._replace(lipschitz_bounds=factors)

  def certify_fast(
    self, params: Any, batches: Iterable[Batch], constants: fast.Constants
  ) -> Evaluation:
    """Certifies in float32 with given constants."""
    on_device = jax.device_put(constants.on_device(), self._on_all)
    columns = self._collect(self._fast_step, params, batches, on_device)
    return Evaluation(**columns, lipschitz_bound=constants.lipschitz)

  def _certify_rigorous(self, params, host, factors, batches):
    """Certifies in float64, with its rounding subtracted."""
    batches = ({**b, 'image': rigorous.to_unit64(b['image'])} for b in batches)
    with jax.enable_x64(True):
      wide = jax.tree.map(widen, params, host)
      columns = self._collect(self._rigorous_step, wide, batches)
    found = rigorous.radii_from_logits(
      columns.pop('logits'),
      columns.pop('norms'),
      rigorous.prove(host, factors),
    )
    errors = found.logit_errors[found.radii > 0]
    return Evaluation(
      **columns,
      predictions=found.predictions,
      radii=found.radii,
      lipschitz_bound=found.lipschitz,
      certificate='rigorous',
      # Of certified examples: there is no bound where features may overflow.
      logit_error=float(np.max(errors, initial=0)),
    )

  def _run_fast(self, params, batch, constants):
    predictions, radii = fast.rival_radii(
      self._model, params, batch['image'], constants
    )
    radii = jnp.min(radii, axis=-1)
    return {'predictions': predictions, 'radii': radii, **_kept(batch)}

  def _run_rigorous(self, params, batch):
    """Returns float64 logits and upper bounds on the norms of the images."""
    logits, norms = rigorous.forward(self._model, params, batch['image'])
    return {'logits': logits, 'norms': norms, **_kept(batch)}

  def _collect(
    self, step: Any, params: Any, batches: Iterable[Batch], *constants: Any
  ) -> dict[str, Any]:
    """Applies a step to all batches; sorts its rows by id, without padding."""
    outputs = [
      step(params, parallel.put_batch(batch, self._on_batch), *constants)
      for batch in batches
    ]
    fetched = jax.device_get(outputs)
    columns = {
      name: np.concatenate([output[name] for output in fetched])
      for name in fetched[0]
    }
    order = np.argsort(columns['id'], kind='stable')
    order = order[columns.pop('mask')[order]]
    columns['ids'], columns['labels'] = columns.pop('id'), columns.pop('label')
    return {name: column[order] for name, column in columns.items()}


def _kept(batch: Batch) -> Batch:
  return {name: batch[name] for name in ('id', 'label', 'mask')}


def widen(p: jax.Array, host: np.ndarray) -> jax.Array:
  """Converts `p` to float64 from its copy `host`, and keeps its sharding.

  XLA would convert subnormal float32 numbers to zero. Call this function under
  `jax.enable_x64(True)`.
  """
  wide = host.astype(np.float64)
  if not p.committed:  # Placed later, where the images are.
    return jnp.asarray(wide)
  return jax.make_array_from_callback(p.shape, p.sharding, wide.__getitem__)
