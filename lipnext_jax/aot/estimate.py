"""How long a step takes at the rates on the chips' data sheets: an estimate.

    compute   (products in bfloat16) / peak + (float32 products) / their peak
    network   bytes sent between neighbours / links + over slices / network
    step      between the larger of the two (all of it hidden) and their sum

It is a roofline: no program reaches the peaks, latency and memory traffic are
left out, and links count as if all of them were busy. Good for what limits a
layout and how it scales, not for promises.
"""

from collections.abc import Sequence
from typing import NamedTuple

from lipnext_jax.aot import chips
from lipnext_jax.aot import collectives
from lipnext_jax.aot import flops as flops_lib


class Estimate(NamedTuple):
  """Seconds per step."""

  compute: float
  network: float

  @property
  def best(self) -> float:
    """All communication hidden behind computation, or the other way round."""
    return max(self.compute, self.network)

  @property
  def worst(self) -> float:
    """Nothing hidden."""
    return self.compute + self.network


def step_time(
  chip: chips.Chip,
  devices: int,
  flops: flops_lib.Flops,
  sent: Sequence[collectives.Collective],
) -> Estimate:
  """The estimate for one step.

  Args:
    chip: each device.
    devices: how many.
    flops: of all devices together, recomputation included.
    sent: of one device.

  >>> chip = chips.CHIPS['v5p']
  >>> step_time(chip, 2, flops_lib.Flops(narrow=2 * chip.compute), []).worst
  1.0
  """
  compute = flops.narrow / chip.compute + flops.wide / chip.float32
  near = sum(c.sent for c in sent if not c.crosses)
  far = sum(c.sent for c in sent if c.crosses)
  return Estimate(compute / devices, near / chip.links + far / chip.network)
