import configparser
import html.parser
import itertools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from lipnext_jax import evaluate
from lipnext_jax import page
from lipnext_jax.data import sources
from lipnext_jax.page import build

VOID = {'img', 'meta', 'br'}


class Outline(html.parser.HTMLParser):
  """Tags that do not match, ids, attributes that could fetch something."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.problems, self.ids, self.tags = [], [], [], []
    self.references = []
    self.feed(text)
    self.close()
    self.problems += [f'<{tag}> stays open' for tag in self.open]

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name.startswith('on'):
        self.problems.append(f'{name} on <{tag}>')
      if name in ('src', 'href', 'srcset', 'action', 'data', 'xlink:href'):
        self.references.append(value)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.problems.append(f'</{tag}> closes something else')


@pytest.fixture(scope='module')
def text(workdir):
  return page.build_page(page.read_run(str(workdir)))


def test_tags_match_and_ids_are_unique(text):
  outline = Outline(text)
  assert not outline.problems
  assert not outline.open
  assert len(outline.ids) == len(set(outline.ids)) > 20
  for _, attributes in outline.tags:
    for name in ('aria-labelledby', 'aria-describedby'):
      if name in attributes:
        assert attributes[name] in outline.ids


def test_an_unbalanced_page_would_be_seen():
  assert Outline('<p><b>x</p>').problems
  assert Outline('<p>').problems


def test_nothing_outside_the_file_is_referred_to(text):
  outline = Outline(text)
  assert outline.references
  for reference in outline.references:
    anchor = reference.startswith('#') and reference[1:] in outline.ids
    assert anchor or reference.startswith('data:image/png;base64,'), reference
  tags = {tag for tag, _ in outline.tags}
  assert not tags & {'script', 'link', 'iframe', 'object', 'embed', 'base'}
  assert '://' not in text
  assert 'url(' not in text
  assert '@import' not in text


def test_every_picture_has_words_and_every_header_a_direction(text):
  outline = Outline(text)
  images = [a for tag, a in outline.tags if tag == 'img']
  assert len(images) == 24 + 12
  assert all(a['alt'] for a in images)
  charts = [
    a for tag, a in outline.tags if (tag, a.get('role')) == ('svg', 'img')
  ]
  # 10 classes, 5 of training; the curve, the distances, the factors.
  assert len(charts) == 18
  assert all(a['aria-labelledby'] for a in charts)
  headers = [a for tag, a in outline.tags if tag == 'th']
  assert all(a['scope'] in ('row', 'col') for a in headers)
  assert text.count('<table') == text.count('<caption>')


def test_headings_are_in_order(text):
  levels = [int(level) for level in re.findall(r'<h(\d)', text)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


NASTY = '</style><script>alert(1)</script>"\'><img src=x onerror=alert(1)>&amp;'


def test_nothing_in_any_file_becomes_markup(workdir, tmp_path):
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  for name in ('config.json', 'run.json', 'attack.json', 'eval.json'):
    stored = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(poison(stored)))
  poisoned = page.build_page(page.read_run(str(copy)))
  assert NASTY not in poisoned
  outline = Outline(poisoned)
  assert not outline.problems
  assert poisoned.count('&lt;script&gt;') > 20
  assert {tag for tag, _ in outline.tags} == {
    tag for tag, _ in Outline(page.build_page(page.read_run(str(workdir)))).tags
  }


def poison(value):
  """Every text, and every free name, replaced by something nasty."""
  if isinstance(value, dict):
    fixed = {'cra', 'epsilons'}
    free = {'lipschitz_bounds', 'attacks', 'packages', 'devices', 'mesh'}
    return {
      key: {
        f'{NASTY}{name}': poison(inner) for name, inner in value[key].items()
      }
      if key in free
      else value[key]
      if key in fixed
      else poison(value[key])
      for key in value
    }
  if isinstance(value, list):
    return [poison(item) for item in value]
  return NASTY if isinstance(value, str) else value


def test_the_page_is_a_function_of_the_files(workdir, text):
  assert page.build_page(page.read_run(str(workdir))) == text
  path = page.write_page(str(workdir))
  with open(path, encoding='utf-8') as file:
    assert file.read() == text
  assert len(text.encode()) < 1_000_000


def test_the_policy_forbids_scripts_and_fetches(text):
  (policy,) = re.findall(
    r'http-equiv="Content-Security-Policy" content="([^"]*)"', text
  )
  assert html.unescape(policy) == build._POLICY
  assert text.index('Content-Security-Policy') < text.index('<style>')


def test_a_run_without_attacks_is_told_how_to_make_them(make_workdir, tmp_path):
  workdir = make_workdir(tmp_path / 'run', attack=False)
  text = page.build_page(page.read_run(str(workdir)))
  assert f'python -m lipnext_jax.attacks --workdir={workdir}' in text
  assert 'Stood the attacks' not in text


class Broken:
  """A split whose images cannot be read."""

  def __len__(self):
    return 1

  def __getitem__(self, index):
    raise OSError('the disk is gone')


def test_the_end_of_a_run_survives_a_report_that_fails(tmp_path, capsys):
  result = evaluate.Evaluation(
    ids=np.zeros(1, int),
    labels=np.zeros(1, int),
    predictions=np.zeros(1, int),
    radii=np.ones(1),
    lipschitz_bound=1.0,
  )
  split = sources.ArraySource(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1))
  # Nothing of the evaluation was written; the images cannot be read.
  for source, problem in ((split, 'eval.json is missing'), (Broken(), 'disk')):
    assert page.report_evaluation(str(tmp_path), result, source) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('no report.html: ')
    assert problem in line


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
  files = {
    path
    for path in (root / 'lipnext_jax').rglob('*.*')
    if path.suffix not in ('.py', '.pyc')
  }
  assert root / 'lipnext_jax' / 'page' / 'page.css' in files
  assert listed == files
