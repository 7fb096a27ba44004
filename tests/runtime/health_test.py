import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax.runtime import health as health_lib

FACTOR = 3.0


def config(**fields):
  defaults = {'max_skipped': 10, 'loss_spike': FACTOR, 'drift': 1e-3}
  return ml_collections.ConfigDict(defaults | fields)


def watch(losses, factor=FACTOR):
  """The state after every loss, and where spikes were seen."""
  after = jax.jit(lambda h, x: h.after(x, jnp.isfinite(x), factor))
  health, states, spikes = health_lib.Health.start(), [], []
  for i, loss in enumerate(losses):
    health, spike = after(health, jnp.float32(loss))
    states.append(jax.device_get(health))
    if spike:
      spikes.append(i)
  return states, spikes


def oracle(losses):
  """The same in float64 and plain Python."""
  mean, n, row, skipped, out = 0.0, 0, 0, 0, []
  for loss in losses:
    if math.isfinite(loss):
      n, row = n + 1, 0
      weight = 1 / min(n, 100)
      mean = mean * (1 - weight) + weight * loss
    else:
      row, skipped = row + 1, skipped + 1
    out.append((skipped, row, mean))
  return out


def test_counts_and_mean_against_plain_python():
  losses = np.random.default_rng(0).gamma(2.0, size=250)
  losses[[0, 7, 8, 120, 121, 122, 249]] = math.nan
  losses[[30, 200]] = math.inf
  states, _ = watch(losses)
  for state, (skipped, row, mean) in zip(states, oracle(losses), strict=True):
    assert (state.skipped, state.in_a_row) == (skipped, row)
    # Rounded to 2⁻²⁴ by each of 250 steps, at most.
    assert state.loss == pytest.approx(mean, rel=250 * 2**-24)


def test_a_spike_is_seen_once_there_is_something_to_compare_with():
  losses = np.ones(300)
  losses[[50, 99, 100, 200]] = 10.0  # The first two are among the first 100.
  losses[250] = 1.5
  losses[260] = math.nan  # Skipped, not a spike.
  assert watch(losses)[1] == [100, 200]
  assert watch(losses, factor=0.0)[1] == []


def test_a_loss_that_rises_slowly_is_no_spike():
  """As it does while ε grows: by half every hundred steps here."""
  assert watch(1.004 ** np.arange(500))[1] == []


def scalars(**changes):
  return {
    'train/skipped_steps': 0.0,
    'train/loss_spikes': 0.0,
    'train/orthogonality_error': 1e-6,
  } | {f'train/{name}': value for name, value in changes.items()}


def test_a_sound_line_has_no_warning():
  assert health_lib.warnings(config(), scalars()) == []
  assert not health_lib.drifted(config(), scalars())


@pytest.mark.parametrize(
  ('changes', 'fields', 'parts'),
  [
    ({'skipped_steps': 3.0}, {}, ['3 steps skipped', 'not finite']),
    ({'loss_spikes': 1.0}, {}, ['1 losses', 'health.loss_spike=3']),
    (
      {'orthogonality_error': 0.02},
      {},
      ['2.0e-02', 'health.drift=0.001', 'optimizer.retraction_period'],
    ),
    ({'orthogonality_error': math.nan}, {}, ['nan']),
    ({'orthogonality_error': 0.02}, {'drift': 0.0}, None),
  ],
)
def test_each_warning_is_a_line_and_can_be_switched_off(changes, fields, parts):
  lines = health_lib.warnings(config(**fields), scalars(**changes))
  assert len(lines) == (parts is not None)
  for part in parts or ():
    assert part in lines[0]
