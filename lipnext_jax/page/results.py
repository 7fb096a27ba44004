"""The answer first: verdict, table, certified accuracy against radius."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lipnext_jax.page import attacked
from lipnext_jax.page import axes
from lipnext_jax.page import charts
from lipnext_jax.page import markup
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

_MOST_STEPS = 1000  # Of a curve; beyond, it is evaluated on an even grid.


def accuracy_curve(
  correct: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Share of examples that are correct with a radius above ε, for every ε.

  Args:
    correct: [n] bool.
    radii: [n], ℓ2 in [0, 1] pixel units; inf is above all, nan above none.

  Returns:
    ε [m], from 0 on, and per cent [m]: a right-continuous step function.

  >>> x, y = accuracy_curve(np.array([True, True]), np.array([0.5, 0.25]))
  >>> x.tolist(), y.tolist()
  ([0.0, 0.25, 0.5], [100.0, 50.0, 0.0])
  """
  counted = np.sort(np.where(correct & (radii > 0), radii, 0.0))
  finite = counted[np.isfinite(counted)]
  x = np.unique(np.append(finite, 0.0))
  if len(x) > _MOST_STEPS:
    x = np.linspace(0.0, x[-1], _MOST_STEPS)
  above = len(counted) - np.searchsorted(counted, x, side='right')
  return x, 100 * above / max(len(counted), 1)


def split_name(run: Run) -> str:
  """What the examples are: 'test' or 'validation' images."""
  stored = run.config.get('eval.split', 'test')
  return str(run.evaluation.get('split', stored))


def verdict(run: Run) -> Html:
  """One sentence on the certificates, one on the attacks, four figures."""
  epsilon, evaluation = run.epsilon, run.evaluation
  certified = evaluation['cra'].get(f'{epsilon:.6g}', evaluation['clean'])
  robust = np.where(run.correct & (run.radii > 0), run.radii, 0.0)
  median = float(np.median(robust)) if len(robust) else 0.0
  images = f'{split_name(run)} image'
  figures = [
    ('Clean accuracy', markup.percent(evaluation['clean']),
     f'of {markup.plural(evaluation["examples"], images)}'),
    (f'Certified at ε = {epsilon:g}', markup.percent(certified),
     f'{markup.grey(epsilon)} grey levels'),
    ('Median certified radius', markup.radius(median),
     f'{markup.grey(median)} grey levels; a wrong answer counts as 0'),
    ('Lipschitz bound Λ', markup.near_one(evaluation['lipschitz_bound']),
     'proved in float64'),
  ]  # fmt: skip
  tiles = [
    el('div', el('dt', name), el('dd', el('strong', value), el('span', more)))
    for name, value, more in figures
  ]
  return el(
    'div',
    el(
      'p',
      el('strong', markup.percent(certified)),
      f' of the {markup.plural(evaluation["examples"], images)} are answered '
      'correctly, with a proof that no perturbation of ℓ2 length up to '
      f'{epsilon:g} (pixels in [0, 1]) can change the answer.',
      class_='verdict',
    ),
    attacked.status(run),
    el('dl', *tiles, class_='tiles'),
  )


def results_table(run: Run) -> Html:
  """Clean and certified accuracy; beside them, what attacks left standing."""
  evaluation, attack = run.evaluation, run.attack
  tried: Mapping[str, Any] = {}
  if attack is not None:
    tried = {
      f'{float(key):.6g}': value
      for key, value in attack.get('epsilons', {}).items()
    }
  n = evaluation['examples']
  head = ['ε (ℓ2)', 'Grey levels', 'Accuracy', 'Images']
  subset = attack is not None and attack['examples'] != n
  if tried:
    head += ['Certified (attacked)'] if subset else []
    head += ['Stood the attacks', 'Gap (points)']
  rows = [
    ['0 (clean)', '0', markup.percent(evaluation['clean']),
     markup.count(int(run.correct.sum())), *['–'] * (len(head) - 4)]
  ]  # fmt: skip
  for key, value in evaluation['cra'].items():
    epsilon = float(key)
    number = int(np.sum(run.correct & (run.radii > epsilon)))
    row = [f'{epsilon:g}', markup.grey(epsilon), markup.percent(value)]
    row.append(markup.count(number))
    if tried:
      found = tried.get(key, {})
      if subset:
        row.append(markup.percent(float(found.get('cra', 'nan'))))
      row.append(markup.percent(float(found.get('robust', 'nan'))))
      row.append(_points(found.get('gap')))
    rows.append(row)
  caption = (
    f'Accuracy on the {markup.plural(n, split_name(run) + " image")}: clean, '
    'and certified at ε, the share that is answered correctly with a radius '
    'above ε. Lengths are in pixels in [0, 1]; a grey level is 1/255.'
  )
  if tried and attack is not None:
    caption += (
      ' “Stood the attacks” is the share of the '
      f'{markup.plural(attack["examples"], "attacked image")} that no attack '
      'changed within ε: their true robust accuracy lies between that and '
      'their certified accuracy.'
    )
  return markup.table(caption, head, rows, class_='numbers')


def _points(value: object) -> str:
  return f'{value:.2f}' if isinstance(value, int | float) else '–'


def curve_chart(run: Run) -> Html:
  """Certified accuracy at every ε, under what the attacks could not break."""
  x, y = accuracy_curve(run.correct, run.radii)
  series = [charts.Series('certified (proved)', x, y, 'step', 1, area=True)]
  tried = run.attacked
  words = [_in_words('Certified', x, y)]
  if tried is not None:
    right = tried['label'] == tried['prediction']
    if len(right) != len(run.ids):
      inner = accuracy_curve(right, tried['radius'])
      name = f'certified, the {markup.count(len(right))} attacked images'
      series.append(charts.Series(name, *inner, 'step', 3))
    outer = accuracy_curve(right, tried['distance'])
    words.append(_in_words('Not broken by any attack', *outer))
    series.append(charts.Series('no attack succeeded', *outer, 'step', 2))
  right_end = max(float(s.x[-1]) for s in series)
  # Up to the right end: what no attack broke stays where it is.
  series = [
    s._replace(x=np.append(s.x, right_end), y=np.append(s.y, s.y[-1]))
    for s in series
  ]
  return charts.plot(
    'curve',
    'Accuracy against the ℓ2 radius ε',
    ' '.join(words),
    series,
    axes.axis_of('ε, ℓ2 in [0, 1] pixel units', series[0].x, start=0),
    axes.Axis('accuracy, %', 0, 100),
    height=300,
    marks=[(run.epsilon, f'ε = {run.epsilon:g}')] if run.epsilon else (),
  )


def _in_words(what: str, x: np.ndarray, y: np.ndarray) -> str:
  points = [
    f'{y[np.searchsorted(x, at, side="right") - 1]:.1f} % at ε = {at:.3g}'
    for at in np.linspace(0, x[-1], 6)
  ]
  return f'{what}: {", ".join(points)}.'


def quantile_table(run: Run) -> Html:
  """The radii in numbers, for those who cannot see the curve."""
  radii = run.radii[run.correct & (run.radii > 0)]
  if not len(radii):
    return el('p', 'No image is answered correctly with a radius above 0.')
  rows = [
    [name, markup.radius(value), markup.grey(value)]
    for name, value in zip(
      ('smallest', '5 %', '25 %', 'median', '75 %', '95 %', 'largest'),
      np.quantile(
        radii, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), method='inverted_cdf'
      ).tolist(),
      strict=True,
    )
  ]
  caption = (
    'Quantiles of the certified radius over the '
    f'{markup.plural(len(radii), "image")} that are answered correctly with '
    'a radius above 0.'
  )
  head = ['Quantile', 'Radius (ℓ2)', 'Grey levels (× 255)']
  return markup.table(caption, head, rows, class_='numbers')
