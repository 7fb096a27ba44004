import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax import schedules


def make_plan(fields, train_examples=1000):
  config = config_lib.default_config()
  config.update_from_flattened_dict(
    {'duration': '10 epochs', 'optimizer.warmup': '1 steps'} | fields
  )
  return schedules.make_plan(config, train_examples)


def test_overriding_the_batch_size_moves_every_duration():
  warmup = {'optimizer.warmup': '2 epochs'}
  small = make_plan({'batch_size': 10} | warmup)
  large = make_plan({'batch_size': 100} | warmup)
  assert small.warmup_steps == 10 * large.warmup_steps == 200
  assert small.total_steps == 10 * large.total_steps == 1000
  assert small.retraction_period == 10 * large.retraction_period
  assert small.log_every == 10 * large.log_every


def test_durations_round_over_the_whole_run():
  for duration, steps in (
    ('77 steps', 77),
    ('1e3 examples', 8),
    # 1437/128 = 11.2266 steps an epoch: 150 of them are 1684, not 150·11.
    ('150 epochs', 1684),
  ):
    plan = make_plan({'batch_size': 128, 'duration': duration}, 1437)
    assert plan.total_steps == steps


def test_zero_means_never_and_a_short_period_is_one_step():
  plan = make_plan({'eval.every': '0 epochs', 'checkpoint.every': '1 examples'})
  assert not any(plan.is_due(plan.eval_every, step) for step in range(10))
  assert plan.checkpoint_every == 1


def test_contradictory_durations_are_refused():
  with pytest.raises(errors.ConfigError, match=r'optimizer\.warmup.*duration'):
    make_plan({'optimizer.warmup': '10 epochs'})
  with pytest.raises(errors.ConfigError, match='less than one step'):
    make_plan({'duration': '0 steps'})


def test_epsilon_grows_linearly_to_half_time_and_stays():
  c = config_lib.default_config().loss
  c.update(epsilon=0.5, epsilon_start=0.1, epsilon_end=3.0)
  radius = schedules.epsilon_schedule(c, schedules.Plan(1000, 0, 0, 0, 0, 1))
  # ε·[a + (b − a)·min(2t/T, 1)] by hand; float32 leaves 1e-6 of it.
  for t in (0, 1, 123, 499, 500, 501, 1000):
    expected = 0.5 * (0.1 + 2.9 * min(2 * t / 1000, 1))
    assert float(radius(t)) == pytest.approx(expected, rel=1e-6)


def rates(warmup_steps=20, final_scale=1e-5):
  c = config_lib.default_config().optimizer
  c.update(learning_rate=2e-3, final_scale=final_scale)
  plan = schedules.Plan(100, warmup_steps, 0, 0, 0, 1)
  return jax.vmap(schedules.learning_rate(c, plan))(jnp.arange(101))


def test_learning_rate_is_linear_then_cosine():
  steps = np.arange(101)
  cosine = 0.5 * (1 + np.cos(np.pi * (steps - 20) / 80))
  decay = 2e-3 * ((1 - 1e-5) * cosine + 1e-5)
  want = np.where(steps < 20, 2e-3 * steps / 20, decay)
  rounding = 2e-3 * 4 * np.finfo(np.float32).eps
  np.testing.assert_allclose(rates(), want, rtol=0, atol=rounding)
  for fault in ({'warmup_steps': 19}, {'final_scale': 2e-5}):
    assert np.max(np.abs(rates(**fault) - want)) > 2 * rounding
  # Without a warm-up it starts at its peak.
  assert rates(warmup_steps=0)[0] == np.float32(2e-3)
