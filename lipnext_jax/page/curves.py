"""Over training and over depth: metrics, orthogonality, factors of Λ."""

import math

import numpy as np

from lipnext_jax.page import axes
from lipnext_jax.page import charts
from lipnext_jax.page import markup
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

# Title, y axis, logarithmic, what the axis includes, its series: (metric, name,
# kind, style).
_TRAINING: tuple[tuple[str, str, bool, tuple, tuple], ...] = (
  (
    'Accuracy', 'accuracy, %', False, (0, 100),
    (('train/clean', 'train, clean', 'line', 3),
     ('train/certified', 'train, certified', 'line', 1),
     ('monitor/clean', 'monitored, clean', 'dots', 3),
     ('monitor/certified', 'monitored, certified', 'dots', 1)),
  ),
  ('Loss', 'loss', True, (), (('train/loss', 'loss', 'line', 1),)),
  (
    'Training radius', 'ε, ℓ2', False, (0,),
    (('train/epsilon', 'ε', 'line', 1),),
  ),
  (
    'Learning rate', 'learning rate', True, (),
    (('train/learning_rate', 'learning rate', 'line', 1),),
  ),
  (
    'Orthogonality error', '‖WᵀW − I‖₂, worst matrix', True, (),
    (('train/orthogonality_error', 'orthogonality error', 'line', 1),),
  ),
)  # fmt: skip


def training(run: Run) -> Html:
  """A chart for each group of metrics that the run wrote."""
  figures = []
  for title, label, log, included, wanted in _TRAINING:
    series = [
      charts.Series(name, *run.metrics[metric], kind, style)
      for metric, name, kind, style in wanted
      if metric in run.metrics
    ]
    if not series:
      continue
    steps = axes.axis_of('step', *(s.x for s in series), start=0)
    steps = steps._replace(whole=True)
    shown = [s.y for s in series] + [np.array(included)]
    values = axes.axis_of(label, *shown, log=log)
    words = ' '.join(_in_words(s) for s in series)
    key = title.lower().replace(' ', '-')
    figures.append(
      charts.plot(key, title, words, series, steps, values, height=180)
    )
  if not figures:
    note = run.notes.get('metrics.jsonl', 'metrics.jsonl holds no metrics.')
    return el('p', note, class_='status')
  return el('div', *figures, class_='columns')


def _in_words(series: charts.Series) -> str:
  finite = np.isfinite(series.y)
  if not finite.any():
    return f'{series.name}: no finite value.'
  x, y = series.x[finite], series.y[finite]
  lost = len(finite) - len(y)
  unknown = f', {lost} of {len(finite)} values not finite' if lost else ''
  return (
    f'{series.name}: {y[0]:.3g} at step {x[0]}, {y[-1]:.3g} at step {x[-1]}, '
    f'between {y.min():.3g} and {y.max():.3g}{unknown}.'
  )


def _factors(run: Run) -> dict[str, np.ndarray]:
  """Parameter → its layers' factors less 1, where eval.json has them."""
  stored = run.evaluation.get('lipschitz_bounds')
  if not isinstance(stored, dict):
    return {}
  return {
    str(name): np.asarray(layers, np.float64) - 1
    for name, layers in stored.items()
    if layers
  }


def lipschitz(run: Run) -> Html:
  """The factors of Λ: one for each orthogonal matrix of the network."""
  factors = _factors(run)
  if not factors:
    return el(
      'p',
      'eval.json does not hold the factors of Λ: evaluate the run again.',
      class_='status',
    )
  stacked = {name: f for name, f in factors.items() if len(f) > 1} or factors
  series = [
    charts.Series(
      name,
      np.arange(1, len(f) + 1),
      f,
      'dots',
      1 + k % 4,
      [f'{name}, layer {i}: {markup.near_one(1 + v)}'
       for i, v in enumerate(f.tolist(), 1)],
    )
    for k, (name, f) in enumerate(stacked.items())
  ]  # fmt: skip
  depth = max(len(f) for f in stacked.values())
  words = ' '.join(_in_words(s) for s in series).replace('step', 'layer')
  figure = charts.plot(
    'factors',
    'Factor of Λ less 1, by layer',
    words,
    series,
    axes.Axis('layer', 0.5, depth + 0.5, whole=True),
    axes.axis_of('factor − 1', *stacked.values(), log=True),
    height=200,
  )
  rows = [
    [name, markup.count(len(f)), markup.near_one(1 + float(f.max())),
     markup.near_one(math.exp(float(np.log1p(f).sum())))]
    for name, f in factors.items()
  ]  # fmt: skip
  rows.append(['all (Λ)', markup.count(sum(map(len, factors.values()))), '',
               markup.near_one(run.evaluation['lipschitz_bound'])])  # fmt: skip
  table = markup.table(
    'Λ is the product of a factor for every orthogonal matrix: an upper bound '
    'on its spectral norm, to the power of how often it is applied.',
    ['Parameter', 'Matrices', 'Largest factor', 'Product'],
    rows,
    class_='numbers',
  )
  return markup.join([figure, table])
