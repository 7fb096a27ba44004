import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax.runtime import health as health_lib

_after = jax.jit(lambda h, x, factor: h.after(x, jnp.isfinite(x), factor))


def watch(losses, factor=3.0):
  """The state after every loss, and where spikes were seen."""
  health, states, spikes = health_lib.Health.start(), [], []
  for i, loss in enumerate(losses):
    health, spike = _after(health, jnp.float32(loss), factor)
    states.append(jax.device_get(health))
    if spike:
      spikes.append(i)
  return states, spikes


def test_counts_and_mean_against_plain_python():
  losses = np.random.default_rng(0).gamma(2.0, size=250)
  losses[[0, 7, 8, 120, 121, 122, 249]] = math.nan
  losses[[30, 200]] = math.inf
  mean, n, row, skipped = 0.0, 0, 0, 0
  for loss, state in zip(losses, watch(losses)[0], strict=True):
    if math.isfinite(loss):
      n, row = n + 1, 0
      mean += (loss - mean) / min(n, 100)
    else:
      row, skipped = row + 1, skipped + 1
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
  # Nor is a loss that rises slowly, as it does while ε grows.
  assert watch(1.004 ** np.arange(500))[1] == []


@pytest.mark.parametrize(
  ('changes', 'fields', 'parts'),
  [
    ({}, {}, None),
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
  config = ml_collections.ConfigDict({'loss_spike': 3.0, 'drift': 1e-3})
  config.update(fields)
  values = {'skipped_steps': 0.0, 'loss_spikes': 0.0}
  values |= {'orthogonality_error': 1e-6} | changes
  scalars = {f'train/{name}': value for name, value in values.items()}
  lines = health_lib.warnings(config, scalars)
  assert len(lines) == (parts is not None)
  for part in parts or ():
    assert part in lines[0]
  drifts = 'orthogonality_error' in changes and parts is not None
  assert health_lib.drifted(config, scalars) == drifts
