"""Schedules of a run: durations in steps, learning rate, training radius."""

from collections.abc import Callable
import operator
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from lipnext_jax import errors

_DURATION = re.compile(r'\s*(\d+(\.\d+)?(e\d+)?) +(steps|epochs|examples)\s*')


class Plan(NamedTuple):
  """The durations of a config, in steps of its batch size."""

  total_steps: int
  warmup_steps: int
  retraction_period: int  # 0: never.
  eval_every: int  # 0: never.
  checkpoint_every: int  # 0: only at the end.
  log_every: int

  def is_due(self, period: int, step: int) -> bool:
    """Returns whether an action with this period (0: never) is due."""
    return period > 0 and step % period == 0


def parse_duration(field: str, duration: str) -> tuple[float, str]:
  """Parses '150 epochs' into (150.0, 'epochs'), or raises ConfigError.

  >>> parse_duration('duration', '1.5 epochs')
  (1.5, 'epochs')
  """
  if match := _DURATION.fullmatch(duration):
    return float(match[1]), match[4]
  remedy = "write e.g. '150 epochs' or '2000 steps'"
  raise errors.ConfigError(field, duration, 'is not a duration', remedy)


def make_plan(config: ml_collections.ConfigDict, train_examples: int) -> Plan:
  """Converts every duration of a config to steps.

  An epoch is `train_examples / batch_size` steps: batches run across epochs,
  and no example is dropped. Durations round to the nearest step; a period that
  is not 0 is at least one step. `train_examples` leaves the holdout out.

  Raises:
    ConfigError: training has no step, or its warm-up is as long as all of it.
  """
  steps_per_epoch = train_examples / config.batch_size

  def steps(field: str) -> int:
    duration = operator.attrgetter(field)(config)
    number, unit = parse_duration(field, duration)
    in_steps = {
      'steps': 1.0,
      'epochs': steps_per_epoch,
      'examples': 1 / config.batch_size,
    }
    exact = number * in_steps[unit]
    return max(1, round(exact)) if exact > 0 else 0

  plan = Plan(
    total_steps=steps('duration'),
    warmup_steps=steps('optimizer.warmup'),
    retraction_period=steps('optimizer.retraction_period'),
    eval_every=steps('eval.every'),
    checkpoint_every=steps('checkpoint.every'),
    log_every=max(1, steps('log.every')),
  )
  if plan.total_steps < 1:
    raise errors.ConfigError(
      'duration', config.duration, 'is less than one step', 'make it longer'
    )
  if plan.warmup_steps >= plan.total_steps:
    raise errors.ConfigError(
      'optimizer.warmup',
      config.optimizer.warmup,
      f'is {plan.warmup_steps} of the {plan.total_steps} steps of '
      f'duration={config.duration!r}',
      'shorten the warm-up or train for longer',
    )
  return plan


def learning_rate(c: ml_collections.ConfigDict, plan: Plan) -> optax.Schedule:
  """Builds the schedule of `config.optimizer`: linear, then cosine (paper §4).

  >>> c = ml_collections.ConfigDict({'learning_rate': 1.0, 'final_scale': 0.0})
  >>> schedule = learning_rate(c, Plan(10, 4, 0, 0, 0, 1))
  >>> [round(float(schedule(step)), 2) for step in (0, 2, 4, 7, 10)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0 if plan.warmup_steps else c.learning_rate,
    peak_value=c.learning_rate,
    warmup_steps=plan.warmup_steps,
    decay_steps=plan.total_steps,
    end_value=c.final_scale * c.learning_rate,
  )


def epsilon_schedule(
  c: ml_collections.ConfigDict, plan: Plan
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """Builds t → ε_t = ε·(a + (b − a)·min(2t/T, 1)) of `config.loss` (paper §4).

  >>> c = ml_collections.ConfigDict(
  ...   {'epsilon': 0.25, 'epsilon_start': 0.1, 'epsilon_end': 2.0})
  >>> radius = epsilon_schedule(c, Plan(100, 0, 0, 0, 0, 1))
  >>> [round(float(radius(t)), 4) for t in (0, 25, 50, 100)]
  [0.025, 0.2625, 0.5, 0.5]
  """
  start, end, epsilon = c.epsilon_start, c.epsilon_end, c.epsilon

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.minimum(2 * step / plan.total_steps, 1)
    return epsilon * (start + (end - start) * progress)

  return schedule
