"""Watches the health of a run: skipped steps, loss spikes, drift, failure.

The counts are part of the train state, on the devices. The host reads them at
log lines only.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from lipnext_jax import schedules

# Steps over which the running mean of the loss averages, roughly.
_MEMORY = 100


class Health(NamedTuple):
  """Counts and running mean of the loss, a part of the train state."""

  # No code reads `skipped`, but every checkpoint holds it.
  skipped: jax.Array  # Shape (): int32, skipped steps.
  in_a_row: jax.Array  # Shape (): int32, skipped since the last good step.
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
    """Returns the health after a step, and whether its loss is a spike.

    Up to 100 losses are averaged with equal weights, and none is a spike. From
    then on, every new loss has the weight 1/100.

    Args:
      loss: loss of the step, float32.
      finite: whether the step was not skipped.
      spike_factor: ratio to the mean above which a loss is a spike; 0: never.
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


class Watch:
  """Warns of skipped steps, loss spikes, drift and a run that fails.

  A run may fail although all of its numbers are finite. After the warm-up,
  every log line is checked for three signs: an accuracy of guessing; a loss
  above that of a constant answer; clipped gradients that are twice as large as
  after the warm-up, while the loss has not fallen since. The run fails if a
  sign lasts for `health.patience`, a share of the run, and for two log lines.

  Args:
    c: the whole config.
    plan: durations of the config in steps.
    num_classes: number of classes of the dataset.
    loss_fn: (logits, labels, head rows, ε) → mean loss.

  Attributes:
    failing: the sign by which the run fails at the last log line, or ''.
  """

  def __init__(
    self,
    c: ml_collections.ConfigDict,
    plan: schedules.Plan,
    num_classes: int,
    loss_fn: Callable[..., jax.Array],
  ):
    self._c = c
    self._warmup = plan.warmup_steps
    self._patience = c.health.patience * plan.total_steps  # In steps.
    self._chance = 1 / num_classes
    # All logits are 0, and the rows of the head orthonormal.
    zeros = jnp.zeros((num_classes, num_classes))
    labels, head = jnp.arange(num_classes), jnp.eye(num_classes)
    epsilon = c.loss.epsilon * c.loss.epsilon_end
    self._constant_loss = float(jax.jit(loss_fn)(zeros, labels, head, epsilon))
    self._step = 0  # Step of the last log line.
    # Loss and gradient norm at the first log line after the warm-up.
    self._reference: tuple[float, float] | None = None
    self._since: dict[str, int] = {}  # Sign → step of its first log line.
    self._said: set[str] = set()
    self.failing = ''

  def observe(self, step: int, scalars: Mapping[str, float]) -> list[str]:
    """Returns warnings about the metrics logged at `step`, and new failures."""
    examples = (step - self._step) * self._c.batch_size
    self._step, lines = step, []
    signs: dict[str, str] = {}
    # Without a loss, all steps were skipped.
    if self._patience and step > self._warmup and 'train/loss' in scalars:
      signs = self._find_signs(scalars, examples)
    self._since = {sign: self._since.get(sign, step) for sign in signs}
    self.failing = ''
    for sign, since in self._since.items():
      if step - since < self._patience:
        continue
      self.failing = self.failing or sign
      if sign not in self._said:
        self._said.add(sign)
        lines.append(
          f'THE RUN IS FAILING: {signs[sign]} since step {since}. Lower '
          f'optimizer.learning_rate={self._c.optimizer.learning_rate:g}, e.g. '
          'to a third, or lengthen optimizer.warmup; if that changes nothing, '
          'look at images and labels (docs/your_data.md)'
        )
    return lines + self._warnings(scalars)

  def _warnings(self, scalars: Mapping[str, float]) -> list[str]:
    """Returns warnings about skipped steps, loss spikes and drift."""
    c, lines = self._c.health, []
    if skipped := scalars['train/skipped_steps']:
      lines.append(
        f'{skipped:.0f} steps skipped, whose loss or gradient was not finite'
      )
    if spikes := scalars['train/loss_spikes']:
      lines.append(
        f'{spikes:.0f} losses above health.loss_spike={c.loss_spike:g} times '
        'their running mean'
      )
    error = scalars['train/orthogonality_error']
    if c.drift > 0 and not error <= c.drift:  # NaN is drift.
      lines.append(
        f'orthogonality error {error:.1e} above health.drift={c.drift:g}: '
        'shorten optimizer.retraction_period, raise optimizer.precision, or '
        'lower optimizer.learning_rate'
      )
    return lines

  def _find_signs(
    self, scalars: Mapping[str, float], examples: int
  ) -> dict[str, str]:
    """Returns the signs of failure in a log line, each with its message."""
    clean, loss = scalars['train/clean'], scalars['train/loss']
    norm, clip = scalars['train/grad_norm'], self._c.optimizer.clip_norm
    self._reference = self._reference or (loss, norm)
    first_loss, first_norm = self._reference
    signs, p = {}, self._chance
    # Guessing rarely exceeds p by three standard deviations.
    if clean / 100 <= p + 3 * math.sqrt(p * (1 - p) / max(examples, 1)):
      signs['accuracy of guessing'] = (
        f'a train accuracy of {clean:.1f} % is that of guessing'
      )
    if loss > self._constant_loss:
      signs['loss above a constant answer'] = (
        f'a loss of {loss:.3g} is above {self._constant_loss:.3g}, that of a '
        'constant answer,'
      )
    if clip and norm >= max(clip, 2 * first_norm) and loss >= first_loss:
      signs['gradients clipped'] = (
        f'gradients of norm {norm:.3g} are clipped to optimizer.clip_norm='
        f'{clip:g}, and the loss has not fallen,'
      )
    return signs
