import base64
import dataclasses
import io
import json
import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from lipnext_jax.report import page
from lipnext_jax.report import workdir as workdir_lib

NASTY = '</style><script>alert(1)</script>"\'><img src=x onerror=alert(1)>&amp;'


def parse(text):
  """Returns the elements of a page; raises if it has a fault."""
  assert not re.search(r'://|url\(|@import', text)
  text = re.sub('<((?:img|meta)[^>]*)>', r'<\1/>', text)
  text = text.removeprefix('<!doctype html>').replace('&nbsp;', ' ')
  elements = [*ElementTree.fromstring(text).iter()]
  ids = [e.get('id') for e in elements if e.get('id')]
  assert len(ids) == len(set(ids))
  for e in elements:
    assert e.tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base')
    assert e.tag != 'img' or e.get('alt')
    assert e.tag != 'th' or e.get('scope') in ('row', 'col')
    assert e.get('role') != 'img' or e.get('aria-describedby')
    for name, value in e.items():
      assert not name.startswith('on')
      if name in ('src', 'href', 'srcset', 'action', 'data'):
        assert value[1:] in ids or value.startswith('data:image/png;base64,')
      if name in ('aria-labelledby', 'aria-describedby'):
        assert value in ids
  return elements


def unwrap(text):
  """Returns a page without the line breaks of its source."""
  return re.sub(r'\s*\n\s*', ' ', text)


@pytest.fixture(scope='module')
def run(workdir):
  return workdir_lib.read_run(str(workdir))


@pytest.fixture(scope='module')
def text(workdir):
  return unwrap((workdir / 'report.html').read_text())


def build(run, **fields):
  """Builds the page of a run with other contents; it must be flawless."""
  text = page.build_page(dataclasses.replace(run, **fields))
  parse(text)
  return unwrap(text)


def rows_of(text, caption):
  """Returns the cells of the table with that caption, row by row."""
  (body,) = re.findall(rf'<span>\s*{caption}.*?</table>', text, re.DOTALL)
  rows = re.findall(r'<tr>(.*?)</tr>', body.replace('\u00a0', ' '), re.DOTALL)
  return [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in rows]


def test_the_page_is_flawless_and_a_function_of_the_files(run, text):
  assert text == build(run)
  pictures = [e for e in parse(text) if e.get('role') == 'img']
  assert len(pictures) == 10 + 2 + 3  # Classes; training; curve, attacks, Λ.
  # The browser keeps the promise, too, before it reads anything else.
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
  policy = f'http-equiv="Content-Security-Policy" content="{policy}"'
  assert text.index(policy) < text.index('<style>')


def test_a_page_with_a_fault_is_seen(text):
  for old, new in (
    ('</main>', '</main><b>'),
    ('<main>', '<main><script>x()</script>'),
    ('</h1>', '</h1><img src="http://x/y.png" alt="x">'),
    (' alt="', ' data-alt="'),
    (' scope="col"', ''),
    ('id="curve-title"', 'id="factors-title"'),
    (' aria-describedby="curve-words"', ''),
    ('href="#results"', 'href="x.html"'),
    ('<section', '<section onclick="x()"'),
  ):
    assert old in text
    with pytest.raises((AssertionError, ElementTree.ParseError)):
      parse(text.replace(old, new, 1))


def poison(value):
  """Replaces every text, and adds a nasty name to every table of names."""
  if isinstance(value, dict):
    poisoned = {k: poison(v) for k, v in value.items()}
    free = value and not {'step', 'cra', 'gap', '0.25', 'runs'} & value.keys()
    return poisoned | ({NASTY: next(iter(poisoned.values()))} if free else {})
  if isinstance(value, list):
    return [poison(item) for item in value]
  return NASTY if isinstance(value, str) else value


def test_nothing_in_any_file_becomes_markup(copy, text):
  for name in ('config.json', 'run.json', 'attack.json', 'eval.json'):
    value = poison(json.loads((copy / name).read_text()))
    if name == 'run.json':
      value[-1]['data'] = {'class_names': [NASTY] * 10}
    (copy / name).write_text(json.dumps(value))
  poisoned = build(workdir_lib.read_run(str(copy)))
  assert NASTY not in poisoned
  assert poisoned.count('&lt;script&gt;') > 100
  assert {e.tag for e in parse(poisoned)} == {e.tag for e in parse(text)}


def test_nothing_proved_is_rounded_up(run, text):
  rows = rows_of(text, 'Accuracy on the')
  for epsilon, grey, share, number, *_ in rows[2:]:
    exact = 36 / 255 if epsilon == '36/255' else float(epsilon)
    count = np.sum(run.certified > exact)
    assert number == str(count)
    assert 0 <= 100 * count / 120 - float(share[:-2]) < 0.01
    assert 0 <= 255 * exact - float(grey) < 0.1
  known = {page.radius(value) for value in run.certified}
  assert {row[1] for row in rows_of(text, 'Quantiles')[1:]} <= known
  bound = run.evaluation['lipschitz_bound'] - 1
  shown = rows_of(text, 'Λ is the product')[-1][-1]
  assert bound <= float(shown[4:].split('·')[0]) * 1e-6 < 1.1 * bound


def test_attacks_are_told_as_they_went(run, text):
  assert '0 fast certificates broken</strong> in 12\u00a0345 attack' in text
  assert '0 of them inside the certified ball' in text
  assert text.count('outside the ball.') == 4
  robust, gap = rows_of(text, 'Accuracy on the')[3][4:]
  assert robust == f'{run.attack["epsilons"]["0.25"]["robust"]:.2f} %'
  assert gap == f'{run.attack["epsilons"]["0.25"]["gap"]:.2f}'
  # A part that was attacked gets a certified curve of its own.
  part = {name: array[:60] for name, array in run.attacked.items()}
  epsilons = {'0.25': {'cra': 200 / 3, 'robust': 68.5, 'gap': 11 / 6}}
  attack = {**run.attack, 'examples': 60, 'epsilons': epsilons}
  part['shown_id'] = np.flatnonzero(part['radius'])[:4]
  text = build(run, attacked=part, attack=attack)
  row = rows_of(text, 'Accuracy on the')[3]
  assert row[4:] == ['66.66 %', '68.50 %', '1.83']
  assert 'certified, the 60 attacked images' in text
  inside = {**run.attacked, 'distance': 0.99 * run.attacked['radius']}
  attack = {**run.attack, 'broken': 2, 'broken_ids': [0, 1]}
  text = build(run, attacked=inside, attack=attack)
  count = np.sum(run.table['radius'] > 0)
  assert f'{count} of them inside the certified ball' in text
  assert 'role="alert"><strong>2&nbsp;fast certificates broken' in text
  assert 'Images 0, 1.' in text
  notes = {'attack.json': 'attack.json is missing'}
  text = build(run, attack={}, attacked={}, notes=notes)
  assert 'attack' not in text.split('<h1>')[1].split('<nav')[0]
  assert f'lipnext_jax.attacks --workdir={run.workdir}</code>' in text


def test_every_class_has_its_numbers_and_its_histogram(run, text):
  labels, predictions = run.table['label'], run.table['prediction']
  matrix = rows_of(text, 'Confusion matrix')
  top, bins = page.make_axis('', 0, run.certified).high, []
  for c, row in enumerate(rows_of(text, 'Accuracy and certified')[1:]):
    mine = labels == c
    radii = run.certified[mine]
    hits = np.sum(predictions[mine] == c), np.sum(radii > 0.25)
    shares = [page.percent(n, 12).replace('\u00a0', ' ') for n in hits]
    median = page.radius(np.sort(radii)[5])  # Of twelve.
    assert row == [f'class {c}', '12', *shares, median]
    pairs = [np.sum(mine & (predictions == j)) for j in range(10)]
    assert [int(cell) for cell in matrix[c + 1][1:]] == pairs
    bins.extend(np.histogram(radii[radii > 0], 24, (0, top))[0])
  drawn = re.findall(r'class="bars".*? height="([\d.]+)"', text)
  heights = [100 * count / max(bins) for count in bins if count]
  assert [float(h) for h in drawn] == pytest.approx(heights, abs=0.01)


def test_of_many_classes_the_ends_and_the_mistakes_are_shown(run):
  labels, right = np.arange(120) // 3, run.certified > 0.5
  predictions = np.where(right, labels, (labels + 1) % 40)
  table = run.table | {'label': labels, 'prediction': predictions}
  run = dataclasses.replace(run, table=table)
  text = build(run)
  medians = [np.median(run.certified[labels == c]) for c in range(40)]
  rows = rows_of(text, 'Accuracy and certified')[1:]
  shown = [medians[int(row[0].removeprefix('class '))] for row in rows]
  assert shown == [*np.sort(medians)[:10], *np.sort(medians)[-10:]]
  counts = [int(row[1]) for row in rows_of(text, 'The most frequent')[1:]]
  mistakes = np.sort(np.bincount(labels[~right]))
  assert counts == [*mistakes[::-1][:20]]
  assert mistakes[-21] > 0


def test_images_are_those_of_the_files(run, text):
  def decode(uri):
    data = base64.b64decode(uri.split(',')[1])
    return np.asarray(Image.open(io.BytesIO(data)))

  shown = [decode(u) for u in re.findall(r'src="([^"]*)"', text)]
  seen = np.concatenate([run.inputs['training'], run.inputs['evaluation']])
  np.testing.assert_array_equal(shown[:8], np.rint(255 * seen[..., 0]))
  shown = shown[8:]
  known = np.rint(255 * run.gallery['image'][..., 0])
  np.testing.assert_array_equal(shown[: len(known)], known)
  assert len(shown) == len(known) + 3 * 4
  colours = np.random.default_rng(0).random((2, 3, 3))
  exact = np.rint(255 * colours).astype(np.uint8)
  for image in (colours, exact):
    np.testing.assert_array_equal(decode(page.data_uri(image)), exact)
  assert decode(page.data_uri(np.array([[[0.0, np.nan, 9.0, 1.0]]]))) == 128


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_odd_values_make_a_page(run, value):
  table = {**run.table, 'radius': np.full(120, value)}
  metrics = {'train/loss': (np.arange(4), np.array([1, np.nan, value, 2]))}
  text = build(run, table=table, metrics=metrics)
  assert not re.search(r'\bnan\b', re.sub(r'data:[^"]*', '', text))
  lost = 1 if value == 0 else 2
  assert f'{lost} of 4 values not finite' in text


def test_the_run_and_its_config_are_told(run, text):
  for words in (
    'c0ffee with uncommitted', 'kind cpu, count 1<', 'main.py --w',
    '<h2 id="images-heading">Images</h2>', 'every convolution: an upper bound',
  ):  # fmt: skip
    assert words in text
  fields = text.split('fields</summary>')[1]
  assert fields.count('<th scope="row">') == len(run.config) == 3
  assert 'an estimate and no proof' in text
  mode = {'certificate': 'rigorous', 'logit_error': 3.14e-9}
  text = build(run, evaluation=run.evaluation | mode)
  assert 'The largest such bound here is 3.2·10⁻⁹' in text
  assert 'an estimate and no proof' not in text


@given(st.lists(st.floats(0, 3, width=32) | st.just(math.inf), min_size=1))
def test_the_curve_is_the_definition_where_it_is_evaluated(radii):
  x, y = page.accuracy_curve(np.array(radii), 4.0)
  assert (x[0], x[-1]) == (0, 4)
  for epsilon, shown in zip(x[::50], y[::50], strict=True):
    assert shown == pytest.approx(100 * np.mean(np.array(radii) > epsilon))


@given(
  st.lists(st.floats(0, width=32) | st.just(math.nan), max_size=9),
  st.booleans(),
)
def test_an_axis_holds_all_it_can_show(values, log):
  axis = page.make_axis('x', np.array(values), log=log)
  assert axis.low < axis.high
  assert len(axis.ticks) <= 8
  off = np.clip(axis.ticks, axis.low, axis.high) - axis.ticks
  assert (abs(off) <= 1e-8 * (axis.high - axis.low)).all()
  shown = np.sort([v for v in values if np.isfinite(v) and v >= 1e-299 * log])
  places = axis.place(np.array([*shown, np.nan, np.inf]))
  assert np.isnan(places[-2:]).all()
  assert (np.diff([0, *places[:-2], 100]) >= 0).all()


def test_a_long_line_keeps_its_extremes_and_its_gaps():
  y = np.zeros(10_000)
  y[777], y[5000] = 5.0, np.nan
  x_axis, y_axis = page.make_axis('x', 0, 1e4), page.make_axis('y', 0, 5)
  drawn = page.path(x_axis, y_axis, np.arange(10_000), y)
  points = re.findall(r'[ML]([\d.]+) ([\d.]+)', drawn)
  assert len(points) <= 1000
  assert ('7.77', '0.00') in points
  assert drawn.count('M') == 2
