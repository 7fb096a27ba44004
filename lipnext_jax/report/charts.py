"""Axes, lines and curves of the charts on the page."""

import math
from typing import Any
from typing import NamedTuple

import numpy as np

_TICKS = 5  # Approximate number of ticks on an axis.
_MOST_POINTS = 1000  # Of a line: a plot has hardly more columns of pixels.


class Axis(NamedTuple):
  """An axis of a chart."""

  label: str
  low: float
  high: float
  ticks: list[float]
  log: bool = False

  def place(self, values: Any) -> np.ndarray:
    """Maps values to per cent of the axis, clipped; NaN if not finite."""
    values = np.asarray(values, np.float64)
    known = np.where(np.isfinite(values), values, np.nan)
    ends = np.array([self.low, self.high])
    if self.log:
      known, ends = np.log10(np.maximum(known, self.low)), np.log10(ends)
    return np.interp(known, ends, (0, 100))


def make_axis(
  label: str, *values: Any, log: bool = False, whole: bool = False
) -> Axis:
  """Fits an axis to the finite values; a logarithmic one, to the positive ones.

  Args:
    label: name of the quantity, with its unit.
    *values: numbers and arrays to be shown.
    log: whether the axis is logarithmic; its ends are then ticks.
    whole: whether all ticks are whole numbers.

  >>> make_axis('ε', 0, np.array([0.9, 0.5])).ticks
  [0.0, 0.2, 0.4, 0.6000000000000001, 0.8]
  >>> make_axis('loss', 2.5, 11, log=True).ticks
  [2.0, 3.0, 5.0, 10.0, 20.0]
  """
  shown = np.concatenate([np.ravel(v).astype(np.float64) for v in values])
  shown = shown[np.isfinite(shown) & ((shown > 0) | (not log))]
  low, high = (shown.min(), shown.max()) if len(shown) else (1.0, 1.0)
  if log:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    marks = [digit * 10.0**k for k in powers for digit in (1, 2, 3, 5)]
    low = max(mark for mark in marks if mark <= low * (1 + 1e-9))
    high = min(m for m in marks if m > low and m >= high * (1 - 1e-9))
    ticks = [mark for mark in marks if low <= mark <= high]
    if len(ticks) > _TICKS + 2:
      ticks = [10.0**k for k in powers if low <= 10.0**k <= high]
      ticks = ticks[:: math.ceil(len(ticks) / (_TICKS + 2))]
    return Axis(label, low, high, ticks, log)
  if not high - low > 1e-9 * abs(low):
    high = low + (abs(low) or 1.0)
  step = (high - low) / _TICKS
  base = 10.0 ** math.floor(math.log10(step))
  step = base * min(m for m in (1, 2, 5, 10) if m * base >= step * (1 - 1e-9))
  step = max(step, 1.0) if whole else step
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return Axis(label, low, high, [k * step for k in range(first, last + 1)])


def path(x_axis: Axis, y_axis: Axis, x: np.ndarray, y: np.ndarray) -> str:
  """Formats points x [n], y [n] as an SVG path over 100 × 100, gaps at NaNs."""
  x, y = x_axis.place(x), 100 - y_axis.place(y)
  if len(x) > _MOST_POINTS:  # Keeps the extremes of short pieces.
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS // 2)
    kept = [at(y[p]) + p[0] for p in parts for at in (np.argmin, np.argmax)]
    x, y = x[np.sort(kept)], y[np.sort(kept)]
  commands, command = [], 'M'
  for across, down in zip(x, y, strict=True):
    if math.isfinite(down):
      commands.append(f'{command}{across:.2f} {down:.2f}')
    command = 'L' if math.isfinite(down) else 'M'
  return ''.join(commands)


def accuracy_curve(
  radii: np.ndarray, end: float
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the share of radii above ε, at even steps of ε from 0 to `end`.

  Args:
    radii: [n], ℓ2 in [0, 1] pixel units; 0 for a wrong answer.
    end: largest ε.

  Returns:
    ε [m] and per cent [m].

  >>> x, y = accuracy_curve(np.array([0.5, 0.25]), 1.0)
  >>> np.interp([0, 0.3, 0.7, 1], x, y).tolist()
  [100.0, 50.0, 0.0, 0.0]
  """
  x = np.linspace(0, end, _MOST_POINTS)
  above = len(radii) - np.searchsorted(np.sort(radii), x, side='right')
  return x, 100 * above / len(radii)
