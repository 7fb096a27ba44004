import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import losses
from lipnext_jax import schedules
from lipnext_jax.runtime import health as health_lib


def watch(losses, factor=3.0):
  """Returns the state after every loss, and the positions of spikes."""

  def step(health, loss):
    health, spike = health.after(loss, jnp.isfinite(loss), factor)
    return health, (health, spike)

  start = health_lib.Health.start()
  _, (states, spikes) = jax.lax.scan(step, start, jnp.float32(losses))
  return states, np.flatnonzero(spikes).tolist()


def test_counts_and_mean_against_plain_python():
  losses = np.random.default_rng(0).gamma(2.0, size=250)
  losses[[0, 7, 8, 120, 121, 122, 249]] = math.nan
  losses[[30, 200]] = math.inf
  mean, n, row, skipped = 0.0, 0, 0, 0
  states, _ = watch(losses)
  for i, loss in enumerate(losses):
    if math.isfinite(loss):
      n, row = n + 1, 0
      mean += (loss - mean) / min(n, 100)
    else:
      row, skipped = row + 1, skipped + 1
    assert (states.skipped[i], states.in_a_row[i]) == (skipped, row)
    # Rounded to 2⁻²⁴ by each of 250 steps, at most.
    assert states.loss[i] == pytest.approx(mean, rel=250 * 2**-24)


def test_a_spike_is_seen_once_there_is_something_to_compare_with():
  losses = np.ones(300)
  losses[[50, 99, 100, 200]] = 10.0  # The first two are among the first 100.
  losses[250] = 1.5
  losses[260] = math.nan  # Skipped, not a spike.
  assert watch(losses)[1] == [100, 200]
  assert watch(losses, factor=0.0)[1] == []
  # Nor is a loss that rises slowly, as it does while ε grows.
  assert watch(1.004 ** np.arange(500))[1] == []


QUIET = {'skipped_steps': 0.0, 'loss_spikes': 0.0, 'orthogonality_error': 1e-6}


def make_watch(loss_fn=losses.cross_entropy_loss, **health):
  """Watches ten classes, 400 steps, a warm-up of 20; gradients clipped at 3."""
  config = config_lib.default_config()
  config.optimizer.learning_rate = 1e-3
  config.batch_size = 100
  config.health.update(health)
  config.duration, config.optimizer.warmup = '400 steps', '20 steps'
  plan = schedules.make_plan(config, 1000)
  return health_lib.Watch(config, plan, 10, loss_fn)


def observe(watch, step, **scalars):
  scalars = QUIET | scalars
  return watch.observe(step, {f'train/{k}': v for k, v in scalars.items()})


@pytest.mark.parametrize(
  ('name', 'value', 'parts'),
  [
    ('skipped_steps', 3.0, ['3 steps skipped', 'not finite']),
    ('loss_spikes', 1.0, ['1 losses', 'health.loss_spike=3']),
    ('orthogonality_error', 0.02, ['2.0e-02', 'optimizer.retraction_period']),
    ('orthogonality_error', math.nan, ['nan', 'health.drift=0.001']),
  ],
)
def test_each_warning_is_a_line(name, value, parts):
  watch = make_watch(loss_spike=3.0, drift=1e-3)
  assert observe(watch, 10) == []
  (line,) = observe(watch, 20, **{name: value})
  assert all(part in line for part in parts)
  # Without a limit, nothing is drift.
  lines = observe(make_watch(drift=0.0), 10, **{name: value})
  assert len(lines) == (name != 'orthogonality_error')


def observe_all(lines, **health):
  """Returns messages at each log line (loss, clean, norm), 10 steps apart."""
  watch, said = make_watch(**health), []
  for number, (loss, clean, norm) in enumerate(lines, start=1):
    found = observe(watch, 10 * number, loss=loss, clean=clean, grad_norm=norm)
    said += [(10 * number, line, watch.failing) for line in found]
  return said, watch


@pytest.mark.parametrize(
  ('line', 'parts'),
  [
    ((2.2, 11.0, 1.0), ('11.0 % is that of guessing', 'learning_rate=0.001')),
    ((2.6, 50.0, 1.0), ('a loss of 2.6 is above 2.3', 'optimizer.warmup')),
  ],
)
def test_a_failing_run_is_called_so_once(line, parts):
  said, watch = observe_all([line] * 20)
  ((step, text, failing),) = said
  assert step == 70  # A tenth of the run after the first line that counts.
  assert failing == watch.failing != ''
  for part in ('THE RUN IS FAILING', 'since step 30', *parts):
    assert part in text
  # Not while it warms up, not for a moment, not if it was switched off.
  good = (1.0, 90.0, 1.0)
  assert observe_all([line, line, *[good] * 20])[0] == []
  assert observe_all([line, line, line, line, good] * 8)[0] == []
  assert observe_all([line] * 20, patience=0.0)[0] == []
  # It may recover. A log line of skipped steps, without a loss, is no sign.
  assert observe_all([*[line] * 10, good])[1].failing == ''
  assert observe(watch, 210) == []
  assert watch.failing == ''


def test_large_gradients_are_a_failure_where_the_loss_does_not_fall():
  start, large = (2.0, 30.0, 5.0), (2.1, 40.0, 15.0)
  said, watch = observe_all([start] * 3 + [large] * 10)
  assert 'norm 15 are clipped to optimizer.clip_norm=3' in said[0][1]
  assert watch.failing == 'gradients clipped'
  # Learning; or large from the start, and falling, as on digits.
  assert observe_all([start] * 3 + [(1.9, 40.0, 15.0)] * 10)[0] == []
  assert observe_all([(2.0, 30.0, 30.0), (2.1, 40.0, 20.0)] * 10)[0] == []


@pytest.mark.parametrize('name', losses.LOSSES)
def test_a_constant_answer_costs_at_least_its_entropy(name):
  watch = make_watch(losses.LOSSES[name])
  assert math.log(10) - 1e-5 <= watch._constant_loss < 6
