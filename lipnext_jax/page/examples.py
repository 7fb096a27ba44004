"""Images: the most and the least robust, and what lies outside a ball."""

import math

import numpy as np

from lipnext_jax.page import markup
from lipnext_jax.page import png
from lipnext_jax.page.data import Arrays
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

_MOST_PAIRS = 4
_GROUPS = {
  'robust': ('Most robust', 'Right answers with the largest radii.'),
  'fragile': (
    'Least robust',
    'Right answers with the smallest radii above 0.',
  ),
  'wrong': (
    'Wrong, with the largest radii',
    'A certificate says that the answer is stable, not that it is right.',
  ),
}


def _image(pixels: np.ndarray, alt: str) -> Html:
  height, width = pixels.shape[:2]
  pixelated = 'pixelated' if max(height, width) < 96 else None
  return el('img', src=png.data_uri(pixels), alt=alt, width=width,
            height=height, class_=pixelated)  # fmt: skip


def gallery(run: Run) -> Html:
  """The chosen examples of the evaluation with their radii."""
  shown = run.gallery
  if shown is None:
    return el('p', run.notes['gallery.npz'], class_='status')
  parts: list[Html] = []
  for group, (title, note) in _GROUPS.items():
    rows = np.flatnonzero(shown['group'] == group)
    if not len(rows):
      continue
    figures = [_example(run, shown, int(row)) for row in rows]
    parts += [
      el('h3', title),
      el('p', note),
      el('div', *figures, class_='gallery'),
    ]
  return markup.join(parts or [el('p', 'There is no example to show.')])


def _example(run: Run, shown: Arrays, row: int) -> Html:
  label, prediction = int(shown['label'][row]), int(shown['prediction'][row])
  radius = float(shown['radius'][row])
  name = int(shown['id'][row])
  truth, answer = run.name_of(label), run.name_of(prediction)
  alt = (
    f'Image {name}, {truth}, predicted {answer}, certified radius '
    f'{markup.radius(radius)}'
  )
  if label != prediction:
    answer = f'{truth} taken for {answer}'
  return el(
    'figure',
    _image(shown['image'][row], alt),
    el(
      'figcaption',
      el('b', markup.radius(radius)),
      el('span', f'{markup.grey(radius)} grey levels'),
      el('span', f'#{name}, {answer}'),
    ),
  )


def amplification(difference: np.ndarray) -> float:
  """By how much a difference can be enlarged around mid grey: one digit.

  >>> amplification(np.array([0.03, -0.1])), amplification(np.zeros(2))
  (5.0, 1.0)
  """
  largest = float(np.max(np.abs(difference), initial=0.0))
  if not 0 < largest < math.inf:
    return 1.0
  factor = 0.5 / largest
  digit = 10.0 ** math.floor(math.log10(factor))
  return max(1.0, math.floor(factor / digit + 1e-9) * digit)


def adversarial(run: Run) -> Html:
  """Originals, what an attack made of them, and the difference."""
  attacked = run.attacked
  if attacked is None:
    note = run.notes.get('attack.npz', run.notes.get('attack.json', ''))
    return el('p', note, class_='status')
  row_of = {int(i): row for row, i in enumerate(attacked['id'])}
  shown = []
  for k, name in enumerate(attacked['shown_id']):
    row = row_of[int(name)]
    difference = attacked['adversarial'][k].astype(np.float64)
    difference = difference - attacked['original'][k]
    distance = float(np.linalg.norm(difference))
    radius = float(attacked['radius'][row])
    ratio = distance / radius if radius > 0 else math.inf
    shown.append((ratio, distance, radius, row, k, difference))
  shown.sort(key=lambda one: one[0])
  if not shown:
    return el('p', 'No attack changed an answer: there is nothing to show.')
  return el(
    'div',
    *(_triple(run, attacked, *one) for one in shown[:_MOST_PAIRS]),
    class_='triples',
  )


def _triple(
  run: Run,
  attacked: Arrays,
  ratio: float,
  distance: float,
  radius: float,
  row: int,
  k: int,
  difference: np.ndarray,
) -> Html:
  name = int(attacked['id'][row])
  before = run.name_of(int(attacked['prediction'][row]))
  after = run.name_of(int(attacked['adversarial_prediction'][k]))
  factor = amplification(difference)
  pictures = (
    (attacked['original'][k], f'original: {before}', f'Image {name}, original'),
    (
      attacked['adversarial'][k],
      f'attacked: {after}',
      f'Image {name}, changed by an attack, predicted {after}',
    ),
    (
      0.5 + factor * difference,
      f'difference × {factor:g}',
      f'Difference of the two, enlarged {factor:g} times around mid grey',
    ),
  )
  figures = [
    el('figure', _image(pixels, alt), el('figcaption', el('b', caption)))
    for pixels, caption, alt in pictures
  ]
  times = f', {ratio:.2f} times the radius' if math.isfinite(ratio) else ''
  where = 'inside' if distance < radius else 'outside'
  return el(
    'div',
    el('div', *figures, class_='gallery'),
    el(
      'p',
      f'Image {name}: certified radius {markup.radius(radius)} '
      f'({markup.grey(radius)} grey levels). The answer changes from {before} '
      f'to {after} at distance {markup.radius(distance)} '
      f'({markup.grey(distance)} grey levels){times}: {where} the ball.',
    ),
    class_='triple',
  )
