import base64
import configparser
import dataclasses
import html
import html.parser
import io
import itertools
import json
import pathlib
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from lipnext_jax.report import page
from lipnext_jax.report import workdir as workdir_lib

VOID = {'img', 'meta', 'br'}
NASTY = '</style><script>alert(1)</script>"\'><img src=x onerror=alert(1)>&amp;'


class Outline(html.parser.HTMLParser):
  """Reads a page and lists what is wrong with it."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.problems, self.tags = [], [], []
    self.feed(text)
    self.close()
    self.problems += [f'<{tag}> stays open' for tag in self.open]
    ids = [a['id'] for _, a in self.tags if 'id' in a]
    if len(set(ids)) < len(ids):
      self.problems.append('an id is not unique')
    for tag, a in self.tags:
      for name in ('src', 'href', 'srcset', 'action', 'data', 'xlink:href'):
        known = a.get(name, '').startswith('data:image/png;base64,')
        if name in a and not known and a[name][1:] not in ids:
          self.problems.append(f'{name} refers to {a[name]}')
      for name in ('aria-labelledby', 'aria-describedby'):
        if name in a and a[name] not in ids:
          self.problems.append(f'{name} refers to nothing')
      if tag == 'img' and not a.get('alt'):
        self.problems.append('<img> without words')
      if a.get('role') == 'img' and 'aria-describedby' not in a:
        self.problems.append('a chart without words')
      if tag == 'th' and a.get('scope') not in ('row', 'col'):
        self.problems.append('<th> without a direction')
      if tag in ('script', 'link', 'iframe', 'object', 'embed', 'base'):
        self.problems.append(f'<{tag}>')
    levels = [int(tag[1]) for tag, _ in self.tags if re.match(r'h\d', tag)]
    steps = itertools.pairwise([0, *levels])
    if levels.count(1) != 1 or any(b > a + 1 for a, b in steps):
      self.problems.append('headings out of order')
    if re.search(r'://|url\(|@import', text):
      self.problems.append('an address')

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.problems += [f'{name}=' for name, _ in attrs if name[:2] == 'on']
    if tag not in VOID:
      self.open.append(tag)

  def handle_data(self, data):
    if self.open[-1:] == ['desc'] and not data.strip():
      self.problems.append('a chart with empty words')

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.problems.append(f'</{tag}> closes something else')


@pytest.fixture(scope='module')
def run(workdir):
  return workdir_lib.read_run(str(workdir))


@pytest.fixture(scope='module')
def text(run):
  return page.build_page(run)


@pytest.fixture(scope='module')
def many(make_workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp('many') / 'run'
  return workdir_lib.read_run(str(make_workdir(path, classes=100, per_class=3)))


def rows_of(text, caption):
  """The cells of the table with that caption, row by row."""
  (body,) = re.findall(rf'<span>\s*{caption}.*?</table>', text, re.DOTALL)
  return [
    [html.unescape(cell).replace('\u00a0', ' ') for cell in cells]
    for row in re.findall(r'<tr>(.*?)</tr>', body, re.DOTALL)
    if (cells := re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row))
  ]


def test_the_page_is_flawless_and_a_function_of_the_files(workdir, text, many):
  assert not Outline(text).problems
  assert not Outline(page.build_page(many)).problems
  assert (workdir / 'report.html').read_text() == text
  charts = [a for _, a in Outline(text).tags if a.get('role') == 'img']
  assert len(charts) == 10 + 2 + 3  # Classes; training; curve, attacks, Λ.
  # The browser keeps the promise, too, before anything else is read.
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
  assert text.index(policy) < text.index('<style>')


FAULTS = {
  '</main>': '</main><b>',
  '<main>': '<main><script>x()</script>',
  '</h1>': '</h1><img src="http://x/y.png" alt="x">',
  ' alt="': ' data-alt="',
  'scope="col"': '',
  '<h2': '<h5',
  'id="curve-title"': 'id="factors-title"',
  'aria-describedby="curve-words"': '',
  '<desc id="curve-words">': '<desc id="curve-words"> </desc><desc>',
  'href="#results"': 'href="x.html"',
  '<section': '<section onclick="x()"',
}


@pytest.mark.parametrize(('old', 'new'), FAULTS.items())
def test_a_page_with_a_fault_is_seen(text, old, new):
  assert old in text
  assert Outline(text.replace(old, new, 1)).problems


def poison(value, free=True):
  """Replaces every text, and every free name, by something nasty."""
  if isinstance(value, dict):
    fixed = {'cra', 'epsilons', 'step', 'split', 'dataset.name'}
    open_to = {'lipschitz_bounds', 'attacks', 'packages', 'devices'}
    return {
      key if free else f'{NASTY}{key}': inner
      if key in fixed - {'split', 'dataset.name'}
      else poison(inner, key not in open_to)
      for key, inner in value.items()
    }
  if isinstance(value, list):
    return [poison(item) for item in value]
  return NASTY if isinstance(value, str) else value


def test_nothing_in_any_file_becomes_markup(workdir, text, tmp_path):
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  for name in ('config.json', 'run.json', 'attack.json', 'eval.json'):
    (copy / name).write_text(
      json.dumps(poison(json.loads((copy / name).read_text())))
    )
  starts = json.loads((copy / 'run.json').read_text())
  starts[-1]['data'] = {'class_names': [NASTY] * 10}
  (copy / 'run.json').write_text(json.dumps(starts))
  poisoned = page.build_page(workdir_lib.read_run(str(copy)))
  assert NASTY not in poisoned
  assert not Outline(poisoned).problems
  assert poisoned.count('&lt;script&gt;') > 100
  kinds = [{tag for tag, _ in Outline(t).tags} for t in (poisoned, text)]
  assert kinds[0] == kinds[1]


def test_accuracies_are_counted_and_never_rounded_up(run, text):
  rows = rows_of(text, 'Accuracy on the')
  assert rows[0][4:] == ['Stood the attacks', 'Gap (points)']
  assert rows[3][4:] == ['32.50 %', '1.50']
  for epsilon, grey, share, number, *_ in rows[2:]:
    exact = 36 / 255 if epsilon == '0.141176' else float(epsilon)
    count = np.sum(run.certified > exact)
    assert number == str(count)
    assert 0 <= 100 * count / 120 - float(share[:-2]) < 0.01
    assert 0 <= 255 * exact - float(grey) < 0.1
  known = {page.radius(value) for value in run.certified}
  assert {row[1] for row in rows_of(text, 'Quantiles')[1:]} <= known


def test_the_bound_is_never_rounded_down(run, text):
  *parts, whole = rows_of(text, 'Λ is the product')[1:]
  bound = run.evaluation['lipschitz_bound'] - 1
  found = float(whole[-1].removeprefix('1 + ').split('·')[0]) * 1e-6
  assert bound <= found < 1.1 * bound
  assert [row[1] for row in parts] == ['8', '8', '1']


def test_an_attacked_part_gets_a_certified_curve_of_its_own(run, text):
  assert ' attacked images' not in text
  part = {name: array[:50] for name, array in run.attacked.items()}
  part = dataclasses.replace(
    run, attacked=part, attack={**run.attack, 'examples': 50}
  )
  text = page.build_page(part)
  assert rows_of(text, 'Accuracy on the')[3][4:] == [
    '31.00 %',
    '32.50 %',
    '1.50',
  ]
  assert 'certified, the 50 attacked images' in text


def test_attacks_are_told_as_they_went(run, text, make_workdir, tmp_path):
  assert '0 fast certificates broken</strong> in 12\u00a0345 attack' in text
  assert '0 of them inside the certified ball' in text
  assert text.count('outside the ball.') == 4
  assert 'at least 0.98' in text
  inside = {**run.attacked, 'distance': 0.99 * run.attacked['radius']}
  text = page.build_page(dataclasses.replace(run, attacked=inside))
  count = np.sum(run.table['radius'] > 0)
  assert f'{count} of them inside the certified ball' in text
  assert 'closest at 0.990 times its radius' in text
  text = (make_workdir(tmp_path / '1', broken=2) / 'report.html').read_text()
  assert 'role="alert"><strong>2&nbsp;fast certificates broken' in text
  assert 'Images 0, 1.' in text
  text = (
    make_workdir(tmp_path / '2', attack=False) / 'report.html'
  ).read_text()
  header, body = text.split('</header>')
  assert 'attack' not in header.split('</style>')[1].split('<nav')[0]
  assert f'lipnext_jax.attacks --workdir={tmp_path / "2"}</code>' in body


def test_every_class_has_its_numbers_and_its_histogram(run, text):
  table = run.table
  matrix = rows_of(text, 'Confusion matrix')
  for c, row in enumerate(rows_of(text, 'Accuracy and certified')[1:]):
    mine = table['label'] == c
    clean = np.mean(table['prediction'][mine] == c)
    certified = np.mean(run.certified[mine] > 0.25)
    shares = [float(cell[:-2]) for cell in row[2:4]]
    assert row[:2] == [f'class {c}', '12']
    assert shares == pytest.approx([100 * clean, 100 * certified], abs=0.01)
    pairs = [np.sum(mine & (table['prediction'] == j)) for j in range(10)]
    assert [int(cell) for cell in matrix[c + 1][1:]] == pairs
  heights = re.findall(r'class="bars".*? height="([\d.]+)"', text)
  assert len(heights) == 10 * 24
  assert max(map(float, heights)) == 100


def test_of_many_classes_the_ends_and_the_mistakes_are_shown(many):
  text = page.build_page(many)
  medians = [
    np.median(many.certified[many.table['label'] == c]) for c in range(100)
  ]
  rows = rows_of(text, 'Accuracy and certified')[1:]
  shown = [int(row[0].removeprefix('class ')) for row in rows]
  rest = [m for c, m in enumerate(medians) if c not in shown]
  assert max(medians[c] for c in shown[:10]) <= min(rest)
  assert min(medians[c] for c in shown[10:]) >= max(rest)
  counts = [int(row[1]) for row in rows_of(text, 'The most frequent')[1:]]
  wrong = np.sum(many.table['label'] != many.table['prediction'])
  assert counts == sorted(counts, reverse=True)
  assert len(counts) == 20 or sum(counts) == wrong


def decode(uri):
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))))


def test_images_are_those_of_the_files(run, text):
  shown = [decode(u) for u in re.findall(r'src="([^"]*)"', text)]
  known = np.rint(255 * np.clip(run.gallery['image'][..., 0], 0, 1))
  np.testing.assert_array_equal(shown[: len(known)], known)
  assert len(shown) == len(known) + 3 * 4
  image = np.random.default_rng(0).random((2, 3, 3))
  exact = np.rint(255 * image).astype(np.uint8)
  np.testing.assert_array_equal(decode(page.data_uri(image)), exact)
  np.testing.assert_array_equal(decode(page.data_uri(exact)), exact)
  assert decode(page.data_uri(np.array([[[0.0, np.nan, 9.0, 1.0]]]))) == 128


@pytest.mark.parametrize('radius', [0.0, np.nan, np.inf])
def test_radii_that_are_all_the_same_make_a_page(run, radius):
  table = {**run.table, 'radius': np.full(120, radius)}
  text = page.build_page(dataclasses.replace(run, table=table))
  assert not Outline(text).problems
  assert not re.search(r'\bnan\b', re.sub(r'data:[^"]*', '', text))


def test_values_that_are_not_finite_are_counted(run):
  metrics = {'train/loss': (np.arange(4), np.array([1, np.nan, np.inf, 2]))}
  text = page.build_page(dataclasses.replace(run, metrics=metrics))
  assert '2 of 4 values not finite' in text
  metrics = {'train/loss': (np.arange(4), np.full(4, np.nan))}
  text = page.build_page(dataclasses.replace(run, metrics=metrics))
  assert 'no finite value' in text


def test_the_run_and_its_config_are_told(run, text):
  assert 'c' * 40 + ' with uncommitted changes' in text
  for words in ('jax 0.10.2', 'kind cpu, count 1', 'main.py --workdir=x'):
    assert words in text
  fields = text.split('fields</summary>')[1]
  assert fields.count('<th scope="row">') == len(run.config) == 3
  evaluation = {
    **run.evaluation,
    'certificate': 'rigorous',
    'logit_error': 3.14e-9,
  }
  rigorous = page.build_page(dataclasses.replace(run, evaluation=evaluation))
  assert 'The largest such bound here is 3.2·10⁻⁹' in rigorous
  assert 'own rounding is not subtracted' in text
  assert 'own rounding is not subtracted' not in rigorous


@pytest.mark.xfail(strict=True, reason='setup.cfg names lipnext_jax.page yet')
def test_everything_that_is_no_code_is_installed_with_it():
  root = pathlib.Path(__file__).resolve().parents[2]
  setup = configparser.ConfigParser()
  setup.read(root / 'setup.cfg')
  listed = {
    path
    for package, patterns in setup['options.package_data'].items()
    for pattern in patterns.split()
    for path in root.joinpath(*package.split('.')).glob(pattern)
  }
  code = ('.py', '.pyc')
  files = (root / 'lipnext_jax').rglob('*.*')
  assert listed == {path for path in files if path.suffix not in code}
