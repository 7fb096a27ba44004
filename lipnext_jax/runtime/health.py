"""Watches whether training is sound: skipped steps, loss spikes, drift.

Every step counts on the device, as a part of the train state; the host reads
the counts at log lines only.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

# Steps that the running mean of the loss looks back on, roughly.
_MEMORY = 100


class Health(NamedTuple):
  """The part of the train state that remembers the steps before."""

  skipped: jax.Array  # Shape (): int32, steps skipped so far.
  in_a_row: jax.Array  # Shape (): int32, of them, up to the last step.
  counted: jax.Array  # Shape (): int32, losses in the mean, at most _MEMORY.
  loss: jax.Array  # Shape (): float32, running mean of the finite losses.

  @classmethod
  def start(cls) -> 'Health':
    """Returns the health before the first step."""
    zero = jnp.zeros([], jnp.int32)
    return cls(zero, zero, zero, jnp.zeros([], jnp.float32))

  def after(
    self, loss: jax.Array, finite: jax.Array, spike_factor: float
  ) -> tuple['Health', jax.Array]:
    """Returns the health one step later, and whether its loss was a spike.

    The mean of the first steps is their plain mean, that of later ones forgets
    the past by 1/100 a step. No loss is a spike before there are 100.

    Args:
      loss: of the step, float32.
      finite: whether it was not skipped.
      spike_factor: factor over the mean from which a loss is a spike; 0: none
        is.

    >>> health, spike = Health.start().after(jnp.float32(2), jnp.bool(True), 3)
    >>> float(health.loss), bool(spike)
    (2.0, False)
    """
    spike = (
      finite
      & (spike_factor > 0)
      & (self.counted == _MEMORY)
      & (loss > spike_factor * self.loss)
    )
    counted = jnp.minimum(self.counted + 1, _MEMORY)
    mean = self.loss + (loss - self.loss) / counted
    return Health(
      skipped=self.skipped + ~finite,
      in_a_row=jnp.where(finite, 0, self.in_a_row + 1),
      counted=jnp.where(finite, counted, self.counted),
      loss=jnp.where(finite, mean, self.loss),
    ), spike


def warnings(
  c: ml_collections.ConfigDict, scalars: Mapping[str, float]
) -> list[str]:
  """Returns the warnings that follow a log line, usually none.

  Args:
    c: `config.health`.
    scalars: the metrics of the log line.
  """
  lines = []
  if skipped := scalars['train/skipped_steps']:
    lines.append(
      f'{skipped:.0f} steps skipped, whose loss or gradient was not finite'
    )
  if spikes := scalars['train/loss_spikes']:
    lines.append(
      f'{spikes:.0f} losses above health.loss_spike={c.loss_spike:g} times '
      'their running mean'
    )
  if drifted(c, scalars):
    lines.append(
      f'orthogonality error {scalars["train/orthogonality_error"]:.1e} above '
      f'health.drift={c.drift:g}: shorten optimizer.retraction_period, raise '
      'optimizer.precision, or lower optimizer.learning_rate'
    )
  return lines


def drifted(c: ml_collections.ConfigDict, scalars: Mapping[str, float]) -> bool:
  """Returns whether the orthogonal matrices left the manifold too far.

  >>> c = ml_collections.ConfigDict({'drift': 1e-3})
  >>> drifted(c, {'train/orthogonality_error': 2e-3})
  True
  """
  error = scalars['train/orthogonality_error']
  return c.drift > 0 and not error <= c.drift  # NaN is drift.
