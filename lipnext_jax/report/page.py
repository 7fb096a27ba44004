"""Builds `report.html`, one file that fetches nothing, from a workdir.

The template `report.html.jinja` has all texts and the structure of the page.
This module prepares its data, formats numbers and scales charts.
"""

import base64
import collections
import io
import json
import math
import os
import re
from typing import Any
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from lipnext_jax import errors
from lipnext_jax import files
from lipnext_jax.certify import decimals
from lipnext_jax.report import workdir as workdir_lib

_SPACE = '\u00a0'  # A number stays on one line with its unit.
_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_MOST_CLASSES = 20  # Of more classes, the weakest and strongest ten are shown.
_BINS = 24  # Bars of a histogram.
_TICKS = 5  # Approximate number of ticks on an axis.
_MOST_POINTS = 1000  # Of a line: a plot has hardly more columns of pixels.


def count(value: int) -> str:
  """Formats an integer with separated thousands: 12 345."""
  return f'{value:,}'.replace(',', _SPACE)


def percent(hits: Any, examples: int = 0) -> str:
  """Formats a percentage, or a ratio of counts as one, rounded down.

  >>> percent(66.666).replace(_SPACE, ' '), percent(2, 3).replace(_SPACE, ' ')
  ('66.67 %', '66.66 %')
  """
  if examples:
    whole, hundredths = divmod(10_000 * int(hits) // examples, 100)
    return f'{whole}.{hundredths:02d}{_SPACE}%'
  return f'{hits:.2f}{_SPACE}%' if isinstance(hits, int | float) else '–'


def radius(value: float, digits: int = 3) -> str:
  """Formats an ℓ2 length, rounded down.

  >>> radius(0.51978), radius(float('inf')), radius(float('nan'))
  ('0.519', '∞', 'not a number')
  """
  shown = decimals.down(float(value), digits)
  return {'Infinity': '∞', 'NaN': 'not a number'}.get(shown, shown)


def grey(value: float) -> str:
  """Formats an ℓ2 length in grey levels of 1/255, rounded down."""
  return radius(decimals.below(float(value), 255), 1)


def constant(bound: float) -> str:
  """Formats Λ, rounded up; a value near 1 by its excess over 1.

  >>> constant(1.00001), constant(4.25)
  ('1 + 1.1e-05', '4.25')
  """
  if 1 <= bound < 1.1:
    return f'1 + {decimals.excess_up(bound)}'
  return decimals.up(bound, 4)


def powers(text: str) -> str:
  """Replaces e-notation by powers of ten.

  >>> powers('1 + 8e-06').replace(_SPACE, ' '), powers('1e-07')
  ('1 + 8·10⁻⁶', '10⁻⁷')
  """
  text = re.sub(
    r'e([+-])0*(\d+)',
    lambda m: f'·10{(m[1] + m[2]).lstrip("+").translate(_SUPERSCRIPT)}',
    text.replace(' ', _SPACE),
  )
  return re.sub(r'(?<![\d.])1·10', '10', text)


def flat(value: Any) -> str:
  """Formats a value of a JSON record on one line, without empty fields.

  >>> flat({'kind': 'cpu', 'count': 1}), flat(['main.py', '-h']), flat([1, 2])
  ('kind cpu, count 1', 'main.py -h', '[1, 2]')
  """
  if isinstance(value, dict):
    known = {k: v for k, v in value.items() if v not in ('', [])}
    return ', '.join(f'{key} {item}' for key, item in known.items())
  if isinstance(value, list) and all(isinstance(v, str) for v in value):
    return ' '.join(value)
  return value if isinstance(value, str) else json.dumps(value)


def data_uri(image: np.ndarray) -> str:
  """Encodes an image as a data URI for the `src` of an `<img>`.

  Args:
    image: [H, W, ch] uint8, or floats, which are clipped to [0, 1]. Three
      channels are red, green and blue; of others, the mean is shown as grey.

  >>> data_uri(np.zeros((1, 1, 3)))[:30]
  'data:image/png;base64,iVBORw0K'
  """
  if image.dtype != np.uint8:
    image = np.clip(np.nan_to_num(image.astype(np.float64)), 0, 1)
    image = np.rint(255 * image).astype(np.uint8)
  if image.shape[-1] != 3:
    image = np.rint(image.mean(axis=-1)).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


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
  if high - low <= 1e-9 * abs(low):
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
  """Computes per cent of radii [n] above ε, at even steps of ε from 0 to `end`.

  >>> x, y = accuracy_curve(np.array([0.5, 0.25]), 1.0)
  >>> np.interp([0, 0.3, 0.7, 1], x, y).tolist()
  [100.0, 50.0, 0.0, 0.0]
  """
  x = np.linspace(0, end, _MOST_POINTS)
  above = len(radii) - np.searchsorted(np.sort(radii), x, side='right')
  return x, 100 * above / len(radii)


def _median(radii: np.ndarray) -> float:
  """Returns the lower median, as the quantiles on the page do."""
  return float(np.quantile(radii, 0.5, method='inverted_cdf'))


def _classes(run: workdir_lib.Run) -> dict[str, Any]:
  """Counts the examples and bins the radii of each class on the page."""
  labels, certified = run.table['label'], run.certified
  right = labels == run.table['prediction']
  members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
  chosen = list(members)
  if len(members) > _MOST_CLASSES:
    chosen.sort(key=lambda c: _median(certified[members[c]]))
    half = _MOST_CLASSES // 2
    chosen = chosen[:half] + chosen[-half:]
  axis = make_axis('radius', 0, certified)
  shown = []
  for c in chosen:
    radii = certified[members[c]]
    positive = np.minimum(radii[radii > 0], axis.high)
    bins, _ = np.histogram(positive, _BINS, (0, axis.high))
    shown.append(
      {
        'label': c,
        'images': len(radii),
        'correct': int(np.sum(right[members[c]])),
        'certified': int(np.sum(radii > run.epsilon)),
        'uncertified': int(np.sum(radii == 0)),
        'median': _median(radii),
        'bars': (bins / len(radii)).tolist(),
      }
    )
  top = max(max(one['bars']) for one in shown) or 1
  return {'axis': axis, 'top': top, 'total': len(members), 'shown': shown}


def _confusion(run: workdir_lib.Run) -> dict[str, Any]:
  """Counts pairs of label and prediction; sorts mistakes by frequency."""
  labels = run.table['label'].tolist()
  predictions = run.table['prediction'].tolist()
  names = sorted({*labels, *predictions})
  pairs = collections.Counter(zip(labels, predictions, strict=True))
  return {
    'names': names if len(names) <= _MOST_CLASSES else [],
    'pairs': pairs,
    'totals': collections.Counter(labels),
    'mistakes': [(*p, n) for p, n in pairs.most_common() if p[0] != p[1]],
  }


def _distances(run: workdir_lib.Run) -> dict[str, np.ndarray]:
  """Sorts the attacks that changed an answer by distance over radius."""
  names = ('id', 'radius', 'distance')
  columns = {name: run.attacked.get(name, np.zeros(0)) for name in names}
  radii, distances = columns['radius'], columns['distance']
  found = np.flatnonzero(np.isfinite(distances) & (radii > 0))
  order = found[np.argsort(distances[found] / radii[found], kind='stable')]
  return {name: column[order] for name, column in columns.items()}


_FUNCTIONS = (
  accuracy_curve, constant, count, data_uri, decimals.epsilon_name,
  decimals.up, flat, grey, make_axis, path, percent, powers, radius,
)  # fmt: skip
_ENVIRONMENT = jinja2.Environment(
  loader=jinja2.PackageLoader('lipnext_jax.report', '.'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
  extensions=['jinja2.ext.do'],
)
_ENVIRONMENT.globals.update({f.__name__: f for f in _FUNCTIONS}, np=np)


def build_page(run: workdir_lib.Run) -> str:
  """Builds the page, which depends only on the files of the run."""
  return _ENVIRONMENT.get_template('report.html.jinja').render(
    run=run,
    classes=_classes(run),
    confusion=_confusion(run),
    distances=_distances(run),
  )


def write_page(workdir: str) -> str:
  """Writes `report.html` into a workdir with an evaluation; returns its path.

  Raises:
    UserError: the files of the evaluation are missing or unreadable, or do not
      fit together.
  """
  try:
    text = build_page(workdir_lib.read_run(workdir))
  except errors.UserError:
    raise
  except Exception as error:  # A file of an earlier version, or edited by hand.
    raise errors.UserError(
      f'{workdir}: its files do not make a page ({type(error).__name__}: '
      f'{errors.one_line(error)}); {workdir_lib.EVALUATE}.'
    ) from error
  path = os.path.join(workdir, 'report.html')
  files.write_text(path, text)
  return path
