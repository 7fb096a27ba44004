"""Axes: a range, where values lie in it, and round ticks."""

import math
from typing import NamedTuple

import numpy as np

from lipnext_jax.page import markup

_TICKS = 5  # About so many on an axis.


class Axis(NamedTuple):
  """One direction of a plot: its range, its ticks, what it measures."""

  label: str
  low: float
  high: float
  log: bool = False
  whole: bool = False  # Ticks at whole numbers only.

  def place(self, values: np.ndarray | float) -> np.ndarray:
    """Values as fractions of the axis, 0 at `low`, clipped to [0, 1]."""
    low, high = self.low, self.high
    values = np.asarray(values, np.float64)
    if self.log:
      values = np.log10(np.maximum(values, low))
      low, high = math.log10(low), math.log10(high)
    return np.clip((values - low) / (high - low), 0, 1)

  def ticks(self) -> list[tuple[float, str]]:
    """Round values within the range, with their labels."""
    if not self.log:
      step = _round_step((self.high - self.low) / _TICKS)
      step = max(step, 1.0) if self.whole else step
      first = math.ceil(self.low / step - 1e-9)
      last = math.floor(self.high / step + 1e-9)
      return [(k * step, f'{k * step:.6g}') for k in range(first, last + 1)]
    first = math.floor(math.log10(self.low))
    if self.high < 10 * self.low:
      step = _round_step((self.high - self.low) / _TICKS)
      first_tick = math.ceil(self.low / step - 1e-9)
      last_tick = math.floor(self.high / step + 1e-9)
      values = [k * step for k in range(first_tick, last_tick + 1)]
      return [(value, power_of_ten(value)) for value in values]
    last = math.ceil(math.log10(self.high))
    stride = max(1, round((last - first) / _TICKS))
    for digits in ((1,), (1, 3), (1, 2, 5)):
      values = [
        digit * 10.0**k
        for k in range(first, last + 1, stride)
        for digit in digits
        if self.low / (1 + 1e-9) <= digit * 10.0**k <= self.high * (1 + 1e-9)
      ]
      if len(values) > 2:
        break
    return [(value, power_of_ten(value)) for value in values]


def power_of_ten(value: float) -> str:
  """A positive number, short, with a power of ten if it is far from 1.

  >>> power_of_ten(1e-7), power_of_ten(1.5e-7), power_of_ten(0.3)
  ('10⁻⁷', '1.5·10⁻⁷', '0.3')
  """
  if 0.005 < value < 1000:
    return f'{value:.4g}'
  digits, exponent = f'{value:.3e}'.split('e')
  power = markup.superscript(int(exponent))
  digits = f'{float(digits):g}'
  return f'10{power}' if digits == '1' else f'{digits}·10{power}'


def _round_step(step: float) -> float:
  """The next of 1, 2, 5 times a power of ten."""
  base = 10.0 ** math.floor(math.log10(step))
  return base * min(m for m in (1, 2, 5, 10) if m * base >= step * (1 - 1e-9))


def axis_of(
  label: str, *values: np.ndarray, log: bool = False, start: float | None = None
) -> Axis:
  """An axis that holds all finite values (all positive ones, if `log`).

  >>> axis_of('steps', np.array([1.0, 9.0]), start=0)[1:3]
  (0.0, 9.0)
  >>> axis = axis_of('nothing', np.array([np.nan]), log=True)
  >>> round(axis.low, 3), round(axis.high, 3)
  (0.501, 1.995)
  """
  flat = np.concatenate([np.ravel(v).astype(np.float64) for v in values])
  flat = flat[np.isfinite(flat)]
  if log:
    flat = flat[flat > 0]
    if not len(flat):
      flat = np.ones(1)
    powers = np.log10(flat)
    span = float(powers.max() - powers.min())
    # Room on both sides: a tenth of the range, and a factor of two in all.
    room = max(0.1 * span, 0.15) if span > 0.005 else 0.3
    # Within what float64 holds, whatever the values are.
    low = min(max(float(powers.min()) - room, -300.0), 299.0)
    high = max(min(float(powers.max()) + room, 300.0), -299.0)
    return Axis(label, 10.0**low, 10.0**high, log=True)
  if start is not None:
    flat = np.append(flat, start)
  if not len(flat):
    flat = np.zeros(1)
  low, high = float(flat.min()), float(flat.max())
  return Axis(label, low, high if high > low else low + (abs(low) or 1.0))
