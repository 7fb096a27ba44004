import json
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lipnext_jax import page
from lipnext_jax.page import data
from lipnext_jax.page import results

RADII = st.floats(0, 3, width=32) | st.sampled_from(
  [0.0, 0.25, 0.5, float('inf'), float('nan')]
)


@given(rows=st.lists(st.tuples(st.booleans(), RADII), min_size=1, max_size=40))
def test_the_curve_is_the_definition_at_every_radius(rows):
  correct = np.array([c for c, _ in rows])
  radii = np.array([r for _, r in rows])
  x, y = results.accuracy_curve(correct, radii)
  assert x[0] == 0
  assert (np.diff(x) > 0).all()
  # At its own points, where radii tie with ε, and halfway between them.
  for epsilon in [*x, *((x[1:] + x[:-1]) / 2), x[-1] + 1]:
    expected = 100 * sum(c and r > epsilon for c, r in rows) / len(rows)
    at = np.searchsorted(x, epsilon, side='right') - 1
    assert y[at] == pytest.approx(expected)


def test_a_curve_of_many_radii_is_exact_where_it_is_evaluated():
  radii = np.random.default_rng(0).random(50_000)
  x, y = results.accuracy_curve(np.ones(50_000, bool), radii)
  assert len(x) == 1000
  for i in (0, 1, 500, 999):
    assert y[i] == pytest.approx(100 * np.mean(radii > x[i]))


def drawn(markup, style):
  """The drawn curve in units of its axes, which are read off its ticks."""
  xs = re.findall(
    r'<text x="([\d.]+)%" y="100%" dy="1.5em"[^>]*>([\d.]+)<', markup
  )
  (x0, v0), (x1, v1) = [(float(a), float(b)) for a, b in (xs[0], xs[-1])]
  (path,) = re.findall(rf'<path d="([^"]*)" class="line s{style}"', markup)
  start = re.match(r'M([\d.]+) ([\d.]+)', path)
  steps = re.findall(r'H([\d.]+)V([\d.]+)', path)
  pairs = [start.groups(), *steps]
  across = np.array([float(a) for a, _ in pairs]) / 10
  x = v0 + (across - x0) / (x1 - x0) * (v1 - v0)
  return x, 100 - np.array([float(b) for _, b in pairs]) / 10


def test_the_drawn_curves_are_those_of_the_files(workdir):
  run = data.read_run(str(workdir))
  chart = results.curve_chart(run)
  table = np.genfromtxt(workdir / 'radii.csv', delimiter=',', names=True)
  with np.load(workdir / 'attack.npz') as attack:
    distances = attack['distance']
  right = table['label'] == table['prediction']
  for style, lengths in ((1, table['radius']), (2, distances)):
    x, y = drawn(chart, style)
    assert len(x) > 80
    for epsilon in (x[1:] + x[:-1])[np.diff(x) > 0.01] / 2:
      expected = 100 * np.mean(right & (lengths > epsilon))
      shown = y[np.searchsorted(x, epsilon, side='right') - 1]
      assert shown == pytest.approx(expected, abs=0.06)  # Of a pixel's size.
  certified, empirical = (drawn(chart, style) for style in (1, 2))
  for epsilon in np.linspace(0, 1, 50):
    below, above = (
      y[np.searchsorted(x, epsilon, side='right') - 1]
      for x, y in (certified, empirical)
    )
    assert above >= below - 0.06


def test_a_subset_that_was_attacked_gets_a_certified_curve_of_its_own(workdir):
  run = data.read_run(str(workdir))
  assert ' attacked images' not in results.curve_chart(run)
  assert 'Certified (attacked)' not in results.results_table(run)
  part = {k: v[:50] for k, v in run.attacked.items()}
  entry = {'cra': 31.0, 'robust': 32.5, 'gap': 1.5}
  attack = {**run.attack, 'examples': 50, 'epsilons': {'0.25': entry}}
  run = run._replace(attacked=part, attack=attack)
  head, *rows = rows_of(results.results_table(run))
  assert head[4:] == [
    'Certified (attacked)',
    'Stood the attacks',
    'Gap (points)',
  ]
  (row,) = (row for row in rows if row[0] == '0.25')
  assert row[4:] == ['31.00\u00a0%', '32.50\u00a0%', '1.50']
  assert {len(row) for row in rows} == {7}
  assert 'certified, the 50 attacked images' in results.curve_chart(run)


def rows_of(markup):
  return [
    re.findall(r'<t[hd][^>]*>([^<]*)</t[hd]>', row)
    for row in re.findall(r'<tr>(.*?)</tr>', markup)
  ]


def test_the_table_counts_what_radii_csv_holds(workdir):
  markup = results.results_table(data.read_run(str(workdir)))
  table = np.genfromtxt(workdir / 'radii.csv', delimiter=',', names=True)
  right = table['label'] == table['prediction']
  attack = json.loads((workdir / 'attack.json').read_text())
  head, clean, *rows = rows_of(markup)
  assert head[:4] == ['ε (ℓ2)', 'Grey levels', 'Accuracy', 'Images']
  assert clean[2:4] == [f'{100 * right.mean():.2f}\u00a0%', str(right.sum())]
  assert len(rows) == 4
  for epsilon, grey, share, number, robust, gap in rows:
    count = np.sum(right & (table['radius'] > float(epsilon)))
    assert number == str(count)
    assert share == f'{100 * count / 120:.2f}\u00a0%'
    assert float(grey) == pytest.approx(255 * float(epsilon), abs=0.06)
    if epsilon in attack['epsilons']:
      entry = attack['epsilons'][epsilon]
      assert robust == f'{entry["robust"]:.2f}\u00a0%'
      assert gap == f'{entry["gap"]:.2f}'


@pytest.mark.parametrize('radius', [0.0, float('nan'), float('inf')])
def test_radii_that_are_all_the_same_make_a_page(workdir, radius):
  run = data.read_run(str(workdir))
  run = run._replace(radii=np.full(120, radius), gallery=None, attacked=None)
  run.notes['gallery.npz'] = 'none'
  text = page.build_page(run)
  assert not re.search(r'\bnan\b', re.sub(r'data:[^"]*', '', text))


def test_quantiles_are_radii_that_occur(workdir):
  run = data.read_run(str(workdir))
  rows = rows_of(results.quantile_table(run))[1:]
  known = {f'{radius:.3f}' for radius in run.radii[run.correct]}
  assert {row[1] for row in rows} <= known
