"""Charts as inline SVG: they stretch with the page, their text does not.

A plot is an `<svg>` as wide as its box. What stretches (lines, areas) lies in
a nested one with `preserveAspectRatio="none"`, in thousandths of the plot;
what must not (text, dots) is placed in per cent of the outer one. So the same
chart is legible on a phone and on a desk, without a line of script.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipnext_jax.page import markup
from lipnext_jax.page.axes import Axis
from lipnext_jax.page.markup import el

_MOST_POINTS = 400  # Of a line: more than a plot has columns of pixels.
MOST_DOTS = 600  # Of a series; beyond, evenly spaced ones.


class Series(NamedTuple):
  """What is drawn: `kind` is 'line', 'step' (right-continuous) or 'dots'."""

  name: str
  x: np.ndarray
  y: np.ndarray
  kind: str = 'line'
  style: int = 1  # 1 to 4: colour and dash, in page.css.
  titles: Sequence[str] = ()  # Of dots: shown when pointed at.
  area: bool = False  # Shades what is under the line.


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most `_MOST_POINTS` of a line's points, its extremes among them.

  >>> y = np.zeros(10_000)
  >>> y[777] = 5.0
  >>> len(thin(np.arange(10_000), y)[1]) <= 400, float(max(thin(y, y)[1]))
  (True, 5.0)
  """
  if len(x) <= _MOST_POINTS:
    return x, y
  kept = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), _MOST_POINTS // 2 - 1):
    finite = part[np.isfinite(y[part])]
    if len(finite):
      kept |= {int(finite[np.argmin(y[finite])])}
      kept |= {int(finite[np.argmax(y[finite])])}
  chosen = sorted(kept)
  return x[chosen], y[chosen]


def _path(series: Series, x_axis: Axis, y_axis: Axis) -> str:
  x, y = series.x, series.y
  if series.kind == 'line':
    x, y = thin(x, y)
  across = 1000 * x_axis.place(x)
  down = 1000 * (1 - y_axis.place(y))
  commands, drawing = [], False
  for i in range(len(x)):
    if not (np.isfinite(x[i]) and np.isfinite(y[i])):
      drawing = False  # A gap, where nothing is known.
      continue
    if drawing and series.kind == 'step':
      commands.append(f'H{across[i]:.1f}V{down[i]:.1f}')
    else:
      commands.append(f'{"L" if drawing else "M"}{across[i]:.1f} {down[i]:.1f}')
    drawing = True
  return ''.join(commands)


def _dots(series: Series, x_axis: Axis, y_axis: Axis) -> markup.Html:
  keep = np.flatnonzero(np.isfinite(series.x) & np.isfinite(series.y))
  if len(keep) > MOST_DOTS:  # Evenly spaced ones; captions count all.
    keep = keep[np.linspace(0, len(keep) - 1, MOST_DOTS).astype(int)]
  across = 100 * x_axis.place(series.x)
  down = 100 * (1 - y_axis.place(series.y))
  titles = list(series.titles)
  dots = [
    el('circle', el('title', titles[i]) if titles else None, r=3,
       cx=f'{across[i]:.2f}%', cy=f'{down[i]:.2f}%')
    for i in keep
  ]  # fmt: skip
  # A screen reader gets the description, not hundreds of them.
  return el('g', *dots, class_=f'dots s{series.style}', aria_hidden='true')


def _grid(x_axis: Axis, y_axis: Axis) -> list[markup.Html]:
  base = el('line', x1=0, x2='100%', y1='100%', y2='100%', class_='grid')
  parts = [base]
  for value, label in y_axis.ticks():
    y = f'{100 * (1 - float(y_axis.place(value))):.2f}%'
    parts.append(el('line', x1=0, x2='100%', y1=y, y2=y, class_='grid'))
    parts.append(el('text', label, x=-8, y=y, dy='0.35em', class_='end'))
  for value, label in x_axis.ticks():
    x = f'{100 * float(x_axis.place(value)):.2f}%'
    parts.append(el('text', label, x=x, y='100%', dy='1.5em', class_='middle'))
  return parts


def _svg(
  key: str, title: str, description: str, content: Sequence[object], height: int
) -> markup.Html:
  return el(
    'svg',
    el('title', title, id=f'{key}-title'),
    el('desc', description, id=f'{key}-desc'),
    *content,
    role='img',
    aria_labelledby=f'{key}-title',
    aria_describedby=f'{key}-desc',
    height=height,
    width='100%',
  )


def _stretched(*content: markup.Html) -> markup.Html:
  return el('svg', *content, viewBox='0 0 1000 1000', width='100%',
            height='100%', preserveAspectRatio='none')  # fmt: skip


def plot(
  key: str,
  title: str,
  description: str,
  series: Sequence[Series],
  x_axis: Axis,
  y_axis: Axis,
  *,
  height: int = 220,
  marks: Sequence[tuple[float, str]] = (),
  heading: bool = True,
) -> markup.Html:
  """A figure: title, legend, plot, and a description for those who cannot see.

  Args:
    key: unique on the page; ids are made of it.
    title: what is shown.
    description: what is to be seen, in words and numbers.
    series: drawn in order; a legend appears from two on.
    x_axis: of the plot.
    y_axis: of the plot.
    height: of the plot, in CSS pixels.
    marks: vertical lines (x, label).
    heading: False: the title is for screen readers and pointers only.
  """
  lines = []
  for s in series:
    if s.kind != 'dots' and (path := _path(s, x_axis, y_axis)):
      if s.area:
        closed = f'{path}V1000H0Z'
        lines.append(el('path', d=closed, class_=f'area s{s.style}'))
      lines.append(el('path', d=path, class_=f'line s{s.style}'))
  dots = [_dots(s, x_axis, y_axis) for s in series if s.kind == 'dots']
  ruled = []
  for value, label in marks:
    x = f'{100 * float(x_axis.place(value)):.2f}%'
    ruled.append(el('line', x1=x, x2=x, y1=0, y2='100%', class_='mark'))
    ruled.append(el('text', label, x=x, y='100%', dx=5, dy=-6))
  content = [*_grid(x_axis, y_axis), *ruled, _stretched(*lines), *dots]
  legend = [
    el('li', el('span', class_=f'swatch s{s.style} {s.kind}'), s.name)
    for s in series
  ]
  return el(
    'figure',
    el('figcaption', title) if heading else None,
    el('ul', *legend, class_='legend') if len(series) > 1 else None,
    el('p', y_axis.label, class_='axis', aria_hidden='true'),
    el('div', _svg(key, title, description, content, height), class_='frame'),
    el('p', x_axis.label, class_='axis across', aria_hidden='true'),
    class_='chart',
  )


def histogram(
  key: str,
  title: str,
  caption: object,
  shares: np.ndarray,
  x_axis: Axis,
  top: float,
  mark: float,
) -> markup.Html:
  """A small histogram, one of many of the same two ranges.

  Args:
    key: unique on the page.
    title: what is shown, in words and numbers.
    caption: stands above it.
    shares: per bin, evenly over `x_axis`; drawn as share of `top`.
    x_axis: of all of them.
    top: the share at full height.
    mark: the x of a vertical line.
  """
  edges = np.linspace(0, 1000, len(shares) + 1)
  bars = ''.join(
    f'M{left + 4:.1f} 1000V{1000 * (1 - share / top):.1f}H{right - 4:.1f}V1000Z'
    for left, right, share in zip(edges, edges[1:], shares, strict=False)
    if share > 0
  )
  x = f'{100 * float(x_axis.place(mark)):.2f}%'
  ticks = x_axis.ticks()
  ends = [ticks[0], ticks[-1]]
  content = [
    el('line', x1=0, x2='100%', y1='100%', y2='100%', class_='grid'),
    _stretched(el('path', d=bars, class_='bars')),
    el('line', x1=x, x2=x, y1=0, y2='100%', class_='mark'),
    *(
      el('text', label, x=f'{100 * float(x_axis.place(value)):.2f}%', y='100%',
         dy='1.4em', class_='middle')
      for value, label in ends
    ),
  ]  # fmt: skip
  svg = el(
    'svg',
    el('title', title, id=f'{key}-title'),
    *content,
    role='img',
    aria_labelledby=f'{key}-title',
    height=56,
    width='100%',
  )
  return el(
    'figure',
    el('figcaption', caption),
    el('div', svg, class_='frame small'),
    class_='chart',
  )
