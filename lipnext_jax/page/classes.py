"""Class by class: radii, accuracies, and what is taken for what."""

import numpy as np

from lipnext_jax.page import axes
from lipnext_jax.page import charts
from lipnext_jax.page import markup
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

_MOST_CLASSES = 20  # Beyond, the weakest and the strongest are shown.
_EACH_END = 10
_MOST_PAIRS = 20
_BINS = 24


def _mean_percent(hits: np.ndarray) -> float:
  return 100 * float(np.mean(hits)) if len(hits) else float('nan')


def class_radii(run: Run) -> dict[int, np.ndarray]:
  """Per class of the split: its certified radii, 0 where there is none.

  A wrong answer, a tie and a radius that is not a number count as 0.
  """
  radii = np.where(run.correct & (run.radii > 0), run.radii, 0.0)
  order = np.argsort(run.labels, kind='stable')
  names, starts = np.unique(run.labels[order], return_index=True)
  parts = np.split(radii[order], starts[1:])
  return {int(c): part for c, part in zip(names, parts, strict=True)}


def shown_classes(run: Run) -> tuple[list[int], str]:
  """The classes that get a chart each, and a sentence on the choice.

  All of them, or the ends of the order by median certified radius.
  """
  radii = class_radii(run)
  if len(radii) <= _MOST_CLASSES:
    return list(radii), ''
  order = sorted(radii, key=lambda c: (float(np.median(radii[c])), c))
  chosen = [*order[:_EACH_END], *order[-_EACH_END:]]
  return chosen, (
    f'Of {markup.count(len(radii))} classes, the {_EACH_END} with the lowest '
    f'and the {_EACH_END} with the highest median radius.'
  )


def histograms(run: Run) -> Html:
  """A histogram of radii for each class, all on the same axes."""
  radii = class_radii(run)
  chosen, choice = shown_classes(run)
  finite = run.radii[np.isfinite(run.radii) & run.correct]
  axis = axes.axis_of('radius', finite, start=0)
  edges = np.linspace(0, axis.high, _BINS + 1)
  shares = {}
  for c in chosen:
    positive = np.minimum(radii[c][radii[c] > 0], axis.high)
    shares[c] = np.histogram(positive, edges)[0] / max(len(radii[c]), 1)
  top = max([float(s.max()) for s in shares.values()] + [1e-9])
  figures = []
  for c in chosen:
    median, n = float(np.median(radii[c])), len(radii[c])
    none = int(np.sum(radii[c] == 0))
    title = (
      f'{run.name_of(c)}: certified radii of {markup.plural(n, "image")}, '
      f'median {markup.radius(median)}, {none} without a certificate of the '
      'right answer'
    )
    caption = markup.join([el('b', run.name_of(c)), f' median {median:.2f}'])
    figures.append(
      charts.histogram(
        f'class-{c}', title, caption, shares[c], axis, top, run.epsilon
      )
    )
  at = f'ε\u00a0=\u00a0{run.epsilon:g}'
  note = (
    f'{choice} Bars: share of the class by certified radius (ℓ2), on the same '
    f'axes. The line marks {at}. Wrong answers have no bar and count as 0 in '
    'the median.'
  )
  return markup.join(
    [el('p', note.strip()), el('div', *figures, class_='multiples')]
  )


def class_table(run: Run) -> Html:
  """Accuracy and radius of every class that is shown."""
  radii, (chosen, choice) = class_radii(run), shown_classes(run)
  rows = []
  for c in chosen:
    mine = run.labels == c
    rows.append(
      [
        run.name_of(c),
        markup.count(int(mine.sum())),
        markup.percent(_mean_percent(run.correct[mine])),
        markup.percent(_mean_percent(radii[c] > run.epsilon)),
        markup.radius(float(np.median(radii[c]))),
      ]
    )
  at = f'Certified at ε\u00a0=\u00a0{run.epsilon:g}'
  head = ['Class', 'Images', 'Clean accuracy', at, 'Median radius (ℓ2)']
  caption = f'Accuracy and certified radius by class. {choice}'.strip()
  return markup.table(caption, head, rows, class_='numbers')


def confusion(run: Run) -> Html:
  """Label against prediction: a matrix, or the pairs when it is too large."""
  names = np.union1d(run.labels, run.predictions)
  if len(names) > _MOST_CLASSES:
    return _confused_pairs(run)
  counts = np.zeros((len(names), len(names)), int)
  np.add.at(
    counts,
    (
      np.searchsorted(names, run.labels),
      np.searchsorted(names, run.predictions),
    ),
    1,
  )
  most = np.maximum(counts.sum(axis=1), 1)
  rows: list[list[object]] = []
  for i, name in enumerate(names):
    known = int(name) < len(run.class_names)
    row: list[object] = [f'{run.name_of(int(name))} {name}' if known else name]
    for j, number in enumerate(counts[i]):
      kind = 'hit' if i == j else 'miss' if number else 'none'
      share = f'--share:{number / most[i]:.3f}'
      row.append(el('td', number, class_=kind, style=share if number else None))
    rows.append(row)
  return markup.table(
    'Confusion matrix in images: rows are labels, columns are predictions.',
    ['Label', *(f'{name}' for name in names)],
    rows,
    class_='confusion',
  )


def confused_pairs(run: Run) -> list[tuple[int, int, int]]:
  """(label, prediction, images), the most frequent mistakes first."""
  wrong = ~run.correct
  pairs, counts = np.unique(
    np.stack([run.labels[wrong], run.predictions[wrong]], axis=1),
    axis=0,
    return_counts=True,
  )
  order = np.argsort(-counts, kind='stable')
  return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def _confused_pairs(run: Run) -> Html:
  pairs = confused_pairs(run)
  if not pairs:
    return el('p', 'Every image is classified as labelled.')
  rows = [
    [f'{run.name_of(label)} taken for {run.name_of(prediction)}',
     markup.count(number),
     markup.percent(100 * number / max(int(np.sum(run.labels == label)), 1))]
    for label, prediction, number in pairs[:_MOST_PAIRS]
  ]  # fmt: skip
  caption = (
    f'The most frequent of {markup.count(len(pairs))} kinds of mistakes '
    '(label taken for prediction).'
  )
  head = ['Mistake', 'Images', 'Share of the class']
  return markup.table(caption, head, rows, class_='numbers')
