"""Builds `report.html`, one file that fetches nothing, from a workdir.

The template `report.html.jinja` has all texts and the structure of the page.
This module prepares its data and formats numbers.
"""

import base64
import collections
import functools
import io
import json
import os
import re
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from lipnext_jax import files
from lipnext_jax.certify import decimals
from lipnext_jax.report import charts
from lipnext_jax.report import workdir as workdir_lib

_SPACE = '\u00a0'  # A number stays on one line with its unit.
_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_MOST_CLASSES = 20  # Of more classes, the weakest and strongest ten are shown.
_BINS = 24  # Bars of a histogram.


def write_page(workdir: str) -> str:
  """Writes `report.html` into a workdir with an evaluation; returns its path.

  Raises:
    UserError: the files of the evaluation are missing or unreadable.
  """
  path = os.path.join(workdir, 'report.html')
  files.write_text(path, build_page(workdir_lib.read_run(workdir)))
  return path


def build_page(run: workdir_lib.Run) -> str:
  """Builds the page, which depends only on the files of the run."""
  return _template().render(
    run=run,
    classes=_classes(run),
    confusion=_confusion(run),
    distances=_distances(run),
  )


@functools.cache
def _template() -> jinja2.Template:
  """Compiles the template, which escapes all values."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('lipnext_jax.report', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=['jinja2.ext.do'],
  )
  functions = (
    charts.accuracy_curve, charts.make_axis, charts.path, constant, count,
    data_uri, decimals.epsilon_name, decimals.up, flat, grey, percent, powers,
    radius,
  )  # fmt: skip
  environment.globals.update({f.__name__: f for f in functions}, np=np)
  return environment.get_template('report.html.jinja')


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
  return {'inf': '∞', 'nan': 'not a number'}.get(shown, shown)


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
  """Formats a value of a JSON record on one line.

  >>> flat({'kind': 'cpu', 'count': 1}), flat(['main.py', '-h']), flat([1, 2])
  ('kind cpu, count 1', 'main.py -h', '[1, 2]')
  """
  if isinstance(value, dict):
    return ', '.join(f'{key} {item}' for key, item in value.items())
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
  axis = charts.make_axis('radius', 0, certified)
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
