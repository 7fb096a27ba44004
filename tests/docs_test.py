"""The site builds, holds together and stands alone; the notebook runs."""

import copy
import html
import pathlib
import re
import sys
import warnings

import markdown
import markdown_it
import nbclient
import nbformat
import pytest

from lipnext_jax import certify
from lipnext_jax import config
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKDOWN = sorted(
  [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('benchmarks/*.md')]
)
# What a browser fetches by itself, from another host.
REMOTE = re.compile(
  r'<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//'
  r'|(?:url\(|@import)\s*["\']?(?:https?:)?//'
)


# Tags that only group words, or end a group.
GROUPS = r'<(?:p|div|span|thead|tbody|br|hr|/\w+)\b[^>]*>'


def words_and_tags(page):
  tags = re.sub(r'<(\w+)[^>]*>', r' <\1> ', re.sub(GROUPS, ' ', page))
  return html.unescape(tags).split()


def read_as_github(text):
  parser = markdown_it.MarkdownIt('commonmark').enable(['table'])
  return words_and_tags(parser.render(text))


def read_as_site(text):
  extensions = ['def_list', 'fenced_code', 'tables', 'toc']
  return words_and_tags(markdown.markdown(text, extensions=extensions))


def test_pages_read_the_same_on_github_and_on_the_site():
  for path in MARKDOWN:
    text = path.read_text()
    assert read_as_site(text) == read_as_github(text), path
  odd = '* a:\n    - b\n\n  c\n* d'  # Four spaces before c would do.
  assert read_as_site(odd) != read_as_github(odd)


@pytest.fixture(scope='module')
def site(tmp_path_factory, run_command):
  """{file: text} of the site; links that lead nowhere fail its build."""
  folder = tmp_path_factory.mktemp('site')
  build = ['mkdocs', 'build', '--strict', f'--site-dir={folder}']
  run_command([sys.executable, '-m', *build])
  return {
    str(path.relative_to(folder)): path.read_text()
    for path in folder.rglob('*')
    if path.suffix in ('.html', '.css')
  }


def test_the_site_fetches_nothing_from_other_hosts(site):
  assert len(site) > 40
  assert not [name for name, text in site.items() if REMOTE.search(text)]
  for fault in (
    '<script async src="https://host/x.js">',
    '<link rel="stylesheet" href="//host/x.css">',
    '@font-face { src: url(https://host/x.woff2); }',
  ):
    assert REMOTE.search(fault)


def test_the_reference_has_every_public_name_and_every_field(site):
  loss_names = ['LOSSES', *(f.__name__ for f in losses.LOSSES.values())]
  for library, public in {
    'optim': optim.__all__,
    'models': models.__all__,
    'certify': certify.__all__,
    'losses': loss_names,
  }.items():
    page = site[f'reference/{library}/index.html']
    for name in public:
      assert f'id="lipnext_jax.{library}.{name}"' in page
  for field in config.FIELDS:
    assert f'<dt><code>{field}</code>' in site['reference/config/index.html']


def shares(outputs):
  """The percentages that a cell printed."""
  text = ''.join(output.get('text', '') for output in outputs)
  return [float(share) for share in re.findall(r'([\d.]+)%', text)]


@pytest.mark.slow  # It trains.
def test_the_notebook_runs_and_its_outputs_are_fresh(tmp_path, monkeypatch):
  monkeypatch.delenv('MPLBACKEND', raising=False)  # Figures go to the notebook.
  # Nothing is kept in the home folder.
  for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_DATA_DIR'):
    monkeypatch.setenv(name, str(tmp_path))
  committed = nbformat.read(ROOT / 'docs' / 'quickstart.ipynb', as_version=4)
  fresh = copy.deepcopy(committed)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Those of the kernel's own packages.
    options = {'timeout': 300, 'coalesce_streams': True}
    nbclient.execute(fresh, str(tmp_path), **options)

  found = []
  for old, new in zip(committed.cells, fresh.cells, strict=True):
    outputs = [cell.get('outputs', []) for cell in (old, new)]
    kinds = [[(o.output_type, 'data' in o) for o in side] for side in outputs]
    assert kinds[0] == kinds[1]
    assert shares(outputs[0]) == pytest.approx(shares(outputs[1]), abs=5)
    found += shares(outputs[1])
  clean, certified, within, beyond = found
  assert clean > certified > 75
  assert within == 0  # No certificate breaks.
  assert beyond > 50
