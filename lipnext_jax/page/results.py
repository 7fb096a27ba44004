"""The answer first: verdict, table, certified accuracy against radius."""

from collections.abc import Mapping
from typing import Any

import numpy as np

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
  excess = evaluation['lipschitz_bound'] - 1
  images = f'{split_name(run)} image'
  figures = [
    ('Clean accuracy', markup.percent(evaluation['clean']),
     f'of {markup.plural(evaluation["examples"], images)}'),
    (f'Certified at ε = {epsilon:g}', markup.percent(certified),
     f'{markup.grey(epsilon)} grey levels'),
    ('Median certified radius', markup.radius(median),
     f'{markup.grey(median)} grey levels; a wrong answer counts as 0'),
    ('Lipschitz bound Λ', f'1\u00a0+\u00a0{markup.scientific(excess)}',
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
    _attack_line(run),
    el('dl', *tiles, class_='tiles'),
  )


def _attack_line(run: Run) -> Html:
  attack = run.attack
  if attack is None:
    return el('p', run.notes.get('attack.json', ''), class_='status')
  runs = markup.count(attack['runs'])
  where = f'against {markup.plural(attack["examples"], "image")}'
  if attack['broken']:
    ids = ', '.join(str(i) for i in list(attack.get('broken_ids', []))[:20])
    return el(
      'p',
      el('strong', f'{markup.plural(attack["broken"], "certificate")} broken'),
      f' in {runs} attack runs {where}: the certificates of this run do not '
      f'hold. Images {ids}.',
      class_='status bad',
      role='alert',
    )
  return el(
    'p',
    el('strong', '0 certificates broken'),
    f' in {runs} attack runs {where}.',
    class_='status good',
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
  head += ['Stood the attacks', 'Gap (points)'] if tried else []
  rows = [
    ['0 (clean)', '0', markup.percent(evaluation['clean']),
     markup.count(int(run.correct.sum())), *(['–'] * 2 if tried else [])]
  ]  # fmt: skip
  for key, value in evaluation['cra'].items():
    epsilon = float(key)
    number = int(np.sum(run.correct & (run.radii > epsilon)))
    row = [f'{epsilon:g}', markup.grey(epsilon), markup.percent(value)]
    row.append(markup.count(number))
    if tried:
      found = tried.get(key, {})
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
      'changed within ε: true robustness lies between the two.'
    )
  return markup.table(caption, head, rows, class_='numbers')


def _points(value: object) -> str:
  return f'{value:.2f}' if isinstance(value, int | float) else '–'


def curve_chart(run: Run) -> Html:
  """Certified accuracy at every ε, under what the attacks could not break."""
  x, y = accuracy_curve(run.correct, run.radii)
  series = [charts.Series('certified (proved)', x, y, 'step', 1, area=True)]
  attacked = run.attacked
  words = [_in_words('Certified', x, y)]
  if attacked is not None:
    right = attacked['label'] == attacked['prediction']
    if len(right) != len(run.ids):
      inner = accuracy_curve(right, attacked['radius'])
      name = f'certified, the {markup.count(len(right))} attacked images'
      series.append(charts.Series(name, *inner, 'step', 3))
    outer = accuracy_curve(right, attacked['distance'])
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


def distance_chart(run: Run) -> Html | None:
  """Every attacked image: where an attack succeeded, over its radius."""
  attacked = run.attacked
  if attacked is None:
    return None
  radii, distances = attacked['radius'], attacked['distance']
  found = np.isfinite(distances) & np.isfinite(radii) & (radii > 0)
  if not found.any():
    return None
  radii, distances = radii[found].astype(float), distances[found].astype(float)
  names = attacked['id'][found]
  order = np.argsort(distances / radii, kind='stable')
  below, ratio = int(np.sum(distances < radii)), np.min(distances / radii)
  description = (
    f'{markup.plural(len(order), "image")} whose answer an attack changed. '
    f'{markup.count(below)} of them inside the certified ball (below the '
    f'line); the closest at {ratio:.3f} times its radius.'
  )
  if len(order) > charts.MOST_DOTS:
    # What lies closest to the line, and a sample of the rest.
    half = charts.MOST_DOTS // 2
    rest = np.linspace(half, len(order) - 1, half).astype(int)
    order = np.concatenate([order[:half], order[rest]])
    description += (
      f' Drawn are the {half} closest to the line and {half} of the others.'
    )
  end = float(radii.max())
  diagonal = np.array([0.0, end])
  radii, distances, names = radii[order], distances[order], names[order]
  titles = [
    f'image {name}: radius {markup.radius(r)}, changed at {markup.radius(d)}'
    for name, r, d in zip(names, radii, distances, strict=True)
  ]
  figure = charts.plot(
    'distances',
    'Where attacks succeed, against the certified radius',
    description,
    [
      charts.Series('the certified radius', diagonal, diagonal, 'line', 1),
      charts.Series(
        'closest change of the answer', radii, distances, 'dots', 2, titles
      ),
    ],
    axes.axis_of('certified radius, ℓ2', radii, start=0),
    axes.axis_of('distance of the attack, ℓ2', distances, start=0),
    height=260,
  )
  return markup.join([figure, el('p', description)])


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


def attack_table(run: Run) -> Html | None:
  """Which attacks ran, and the Lipschitz constant from both sides."""
  attack = run.attack
  if attack is None:
    return None
  rows = [
    [name, markup.count(int(one.get('runs', 0))),
     markup.count(int(one.get('successes', 0)))]
    for name, one in attack.get('attacks', {}).items()
  ]  # fmt: skip
  lower = attack.get('lipschitz_lower_bound')
  between = None
  if isinstance(lower, int | float):
    upper = run.evaluation['lipschitz_bound'] - 1
    between = el(
      'p',
      'The Lipschitz constant of the backbone is at least '
      f'{lower:.4f} (a pair of inputs was found) and at most '
      f'1 + {markup.scientific(upper)} (proved).',
    )
  caption = (
    f'Attacks on {attack.get("certificate", "fast")} certificates '
    f'(seed {attack.get("seed", "–")}). A success changes the answer, at any '
    'distance; only one inside the certified ball breaks a certificate.'
  )
  table = markup.table(
    caption, ['Attack', 'Runs', 'Successes'], rows, 'numbers'
  )
  title = el('h3', 'Attacks')
  return markup.join([title, table if rows else None, between])
