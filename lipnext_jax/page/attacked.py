"""What the attacks did: certificates broken, and where answers change."""

import numpy as np

from lipnext_jax.page import axes
from lipnext_jax.page import charts
from lipnext_jax.page import markup
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html


def status(run: Run) -> Html:
  """One line: not attacked, not broken, or broken."""
  attack = run.attack
  if attack is None:
    return el('p', run.notes.get('attack.json', ''), class_='status')
  runs = markup.count(attack['runs'])
  kind = attack.get('certificate', 'fast')
  where = f'against {markup.plural(attack["examples"], "image")}'
  own = run.evaluation.get('certificate', kind)
  if kind != own:
    where += f'; what was attacked is {kind}, this evaluation is {own}'
  if attack['broken']:
    ids = ', '.join(str(i) for i in list(attack.get('broken_ids', []))[:20])
    return el(
      'p',
      el(
        'strong',
        f'{markup.plural(attack["broken"], f"{kind} certificate")} broken',
      ),
      f' in {runs} attack runs up to the certified radius, {where}: the '
      'certificates of this run do not '
      f'hold. Images {ids}.',
      class_='status bad',
      role='alert',
    )
  return el(
    'p',
    el('strong', f'0 {kind} certificates broken'),
    f' in {runs} attack runs up to the certified radius, {where}.',
    class_='status good',
  )


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
    upper = markup.near_one(run.evaluation['lipschitz_bound'])
    between = el(
      'p',
      'The Lipschitz constant of the backbone is at least '
      f'{markup.near_one(lower)} (two such inputs were found) and at most '
      f'{upper} (proved).',
    )
  caption = (
    f'Attacks on {attack.get("certificate", "fast")} certificates '
    f'(seed {attack.get("seed", "–")}). A success changes the answer, at any '
    'distance; only one inside the certified ball breaks a certificate.'
  )
  table = markup.table(
    caption, ['Attack', 'Runs', 'Successes'], rows, 'numbers'
  )
  folded = el(
    'details', el('summary', f'All {len(rows)} kinds of attack'), table
  )
  return markup.join([between, folded if rows else None])


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
