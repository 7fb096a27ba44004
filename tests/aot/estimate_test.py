import pytest

from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import estimate
from lipnext_jax.aot import flops

CHIP = chips.CHIPS['h100']


def gather(size, crosses):
  return collectives.Collective('all-gather', 'f32', size, 2, crosses, 3, '')


def test_compute_is_split_and_float32_is_dearer():
  time = estimate.step_time(
    CHIP, 4, flops.Flops(CHIP.compute, CHIP.float32), []
  )
  assert time.compute == pytest.approx(2 / 4)
  assert (time.best, time.worst) == (time.compute, time.compute)


def test_slices_are_apart():
  """Half of 8 bytes, three times, near; and the same over the network."""
  sent = [gather(8, False), gather(8, True)]
  time = estimate.step_time(CHIP, 4, flops.Flops(), sent)
  assert time.network == pytest.approx(12 / CHIP.links + 12 / CHIP.network)
  assert time.best == time.worst == time.network
