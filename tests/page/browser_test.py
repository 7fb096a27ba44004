"""The report in a real browser: rendered, quiet, legible, accessible.

Screenshots go to pytest's temporary directory, or to $LIPNEXT_SCREENSHOTS.
"""

import os
import pathlib
import shutil
import zlib

from playwright import sync_api
import pytest

from lipnext_jax import page as page_lib

BROWSERS = (
  'chromium',
  'chromium-browser',
  'google-chrome',
  'google-chrome-stable',
)
WIDTHS = {'desktop': 1280, 'phone': 390}


@pytest.fixture(scope='module')
def browser():
  """One browser for all tests; the one thing here that pip cannot install."""
  with sync_api.sync_playwright() as playwright:
    own = playwright.chromium.executable_path  # Of `playwright install`.
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    found += [own] if os.path.exists(own) else []
    if not found:
      pytest.skip(
        f'no browser: none of {", ".join(BROWSERS)} is on the PATH (on Debian: '
        'apt-get install chromium), nor did `playwright install chromium` run'
      )
    instance = playwright.chromium.launch(executable_path=found[0])
    yield instance
    instance.close()


# What only a browser can tell, computed in the page itself.
_MEASURE = """() => {
  const problems = [];
  const root = document.documentElement;
  if (root.scrollWidth > window.innerWidth)
    problems.push(`overflow: ${root.scrollWidth} > ${window.innerWidth}`);
  for (const th of document.querySelectorAll('th'))
    if (!th.scope) problems.push(`th without scope: ${th.textContent}`);
  for (const e of document.querySelectorAll('img'))
    if (!e.complete || !e.naturalWidth) problems.push(`image not shown`);

  // Contrast as WCAG 2 defines it; colours are mixed by the canvas itself.
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const seen = new Map();
  function mixed(layers) {
    const key = layers.join('|');
    if (!seen.has(key)) {
      context.fillStyle = '#fff';
      context.fillRect(0, 0, 1, 1);
      for (const layer of layers) {
        context.fillStyle = layer;
        context.fillRect(0, 0, 1, 1);
      }
      const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map(v => {
        v /= 255;
        return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      });
      seen.set(key, 0.2126 * r + 0.7152 * g + 0.0722 * b);
    }
    return seen.get(key);
  }
  function contrast(element, colour) {
    const grounds = [];
    for (let e = element; e; e = e.parentElement)
      grounds.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [mixed(grounds), mixed([...grounds, colour])];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  function need(element, colour, least, what) {
    const is = contrast(element, colour);
    if (is < least) problems.push(`contrast ${is.toFixed(2)} of ${what}`);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('title, desc'))
      continue;
    const style = getComputedStyle(e);
    const colour = e instanceof SVGElement ? style.fill : style.color;
    need(e, colour, 4.5, text.slice(0, 40));
    if (parseFloat(style.fontSize) < 11.5) problems.push(`small: ${text}`);
  }
  for (const e of document.querySelectorAll('path.line'))
    need(e, getComputedStyle(e).stroke, 3, 'a line');
  for (const e of document.querySelectorAll('path.bars, circle'))
    need(e, getComputedStyle(e).fill, 3, 'a mark');
  return [...new Set(problems)];
}"""


class Watched:
  """A page that writes down what it complains of and what it fetches."""

  def __init__(self, browser):
    self.page = browser.new_page()
    self._problems = []
    self._session = self.page.context.new_cdp_session(self.page)
    self.page.on('console', lambda m: self._note(f'console: {m.text}'))
    self.page.on('pageerror', lambda e: self._note(f'script: {e}'))
    self.page.on('request', self._request)

  def _note(self, text):
    self._problems.append(text)

  def _request(self, request):
    if not request.url.startswith(('file:', 'data:')):
      self._note(f'request: {request.url}')

  def check(self, path, width=360, scheme='light'):
    """Every problem of the file in a window of that width."""
    self._problems.clear()
    self.page.set_viewport_size({'width': width, 'height': 900})
    self.page.emulate_media(color_scheme=scheme, media='screen')
    self.page.goto(path.as_uri())
    self.page.evaluate(
      'document.querySelectorAll("details").forEach(d => d.open = true)'
    )
    tree = self._session.send('Accessibility.getFullAXTree')['nodes']
    return [
      *self._problems,
      *self.page.evaluate(_MEASURE),
      *accessibility_problems(tree),
    ]


def accessibility_problems(nodes):
  """What a screen reader would trip over, in the browser's own tree."""
  problems, levels = [], []
  by_id = {node['nodeId']: node for node in nodes}
  nodes = [node for node in nodes if not node.get('ignored')]

  def role(node):
    return node.get('role', {}).get('value')

  def name(node):
    return node.get('name', {}).get('value', '').strip()

  def below(node):
    for child in node.get('childIds', []):
      if child in by_id:
        yield by_id[child]
        yield from below(by_id[child])

  for node in nodes:
    named = role(node) in ('image', 'img', 'table', 'link', 'region')
    if named and not name(node):
      problems.append(f'{role(node)} without a name')
    if role(node) == 'table':
      inside = {role(child) for child in below(node)}
      for header in ('columnheader', 'rowheader'):
        if header not in inside:
          problems.append(f'table {name(node)[:30]!r} without {header}')
    if role(node) == 'heading':
      (level,) = (
        p['value']['value'] for p in node['properties'] if p['name'] == 'level'
      )
      if level > (levels[-1] if levels else 0) + 1:
        problems.append(f'heading {name(node)!r} skips to level {level}')
      levels.append(level)
  if levels.count(1) != 1:
    problems.append(f'{levels.count(1)} headings of level 1')
  roles = {role(node) for node in nodes}
  for landmark in ('banner', 'main', 'navigation', 'contentinfo'):
    if landmark not in roles:
      problems.append(f'no landmark {landmark}')
  return problems


def is_blank(png):
  """Nothing is drawn: nearly all rows of the picture are the same bytes."""
  width, height = (int.from_bytes(png[i : i + 4], 'big') for i in (16, 20))
  data, at = b'', 8
  while at < len(png):
    length = int.from_bytes(png[at : at + 4], 'big')
    if png[at + 4 : at + 8] == b'IDAT':
      data += png[at + 8 : at + 8 + length]
    at += length + 12
  rows = zlib.decompress(data)
  size = len(rows) // height
  assert size in (1 + 3 * width, 1 + 4 * width)
  distinct = {rows[i : i + size] for i in range(0, len(rows), size)}
  return len(distinct) < height / 4


@pytest.fixture(scope='module')
def watched(browser):
  return Watched(browser)


@pytest.fixture(scope='module')
def report(workdir):
  return pathlib.Path(page_lib.write_page(str(workdir)))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('device', WIDTHS)
def test_the_report_is_flawless(watched, report, tmp_path, device, scheme):
  problems = watched.check(report, WIDTHS[device], scheme)
  folder = pathlib.Path(os.environ.get('LIPNEXT_SCREENSHOTS', tmp_path))
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'report-{device}-{scheme}.png'
  watched.page.screenshot(path=path, full_page=True)
  assert not problems
  assert not is_blank(path.read_bytes())
  dark = 'matchMedia("(prefers-color-scheme: dark)").matches'
  assert watched.page.evaluate(dark) == (scheme == 'dark')


SIZES = {
  'a thousand classes': {'classes': 1000, 'per_class': 2, 'depth': 128},
  'two classes, one layer': {'classes': 2, 'depth': 1, 'attack': False},
  'a broken certificate': {'per_class': 3, 'broken': 3},
}


@pytest.mark.parametrize('size', SIZES)
def test_any_size_fits_a_narrow_phone(watched, make_workdir, tmp_path, size):
  workdir = make_workdir(tmp_path / 'run', **SIZES[size])
  path = pathlib.Path(page_lib.write_page(str(workdir)))
  assert not watched.check(path)


def test_it_prints_dark_on_white_without_the_navigation(watched, report):
  watched.check(report, 800, 'dark')
  watched.page.emulate_media(media='print')
  assert not watched.page.locator('nav').is_visible()
  ground, ink = watched.page.evaluate(
    '[getComputedStyle(document.body).backgroundColor,'
    ' getComputedStyle(document.body).color]'
  )
  assert (ground, ink) == ('rgb(255, 255, 255)', 'rgb(0, 0, 0)')


def test_the_keyboard_reaches_the_results_first(watched, report):
  watched.check(report, 800)
  page = watched.page
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.textContent').startswith('Skip')
  page.keyboard.press('Enter')
  assert page.url.endswith('#results')


TABLE = (
  '<table><caption>x</caption><tr><th scope="col">a</th><th scope="col">b</th>'
  '</tr><tr><td>1</td><td>2</td></tr></table></main>'
)
SCRIPT = ('</body>', '<script>broken()</script></body>')


def before_the_footer(markup):
  return '<footer>', f'{markup}<footer>'


# Two pages with many faults each: what is replaced, and what must be said.
FAULTS = (
  {
    SCRIPT: 'console: Executing inline script violates',
    before_the_footer(
      '<style>@import "http://localhost:1/x.css";</style>'
    ): 'http://localhost:1/x.css',
    before_the_footer('<div style="width:2000px">x</div>'): 'overflow: ',
    (' alt="', ' data-alt="'): 'image without a name',
    ('<th scope="col">Class', '<th>Class'): 'th without scope: Class',
    ('</main>', TABLE): "table 'x' without rowheader",
    before_the_footer('<h5>x</h5>'): "heading 'x' skips to level 5",
    before_the_footer('<p style="color:#aaa">faint</p>'): 'of faint',
    before_the_footer('<p style="font-size:8px">tiny</p>'): 'small: tiny',
  },
  {
    ('default-src &#x27;none&#x27;; ', ''): '',  # For the next to run at all.
    SCRIPT: 'script: broken is not defined',
    ('img-src data:', 'img-src *'): '',  # For the next to be asked for.
    before_the_footer(
      '<img alt="x" src="http://localhost:1/x.png">'
    ): 'request: http://localhost:1/x.png',
    (
      '<title id="curve-title">Accuracy against the ℓ2 radius ε</title>',
      '',
    ): 'image without a name',
    ('<caption>', '<thead><tr><th scope="col">'): 'table without a name',
    ('</caption>', '</th></tr></thead>'): '',  # Of the same fault.
    ('main>', 'div>'): 'no landmark main',
    ('class="line s1"', 'class="line s1" style="stroke:#ddd"'): 'of a line',
    ('png;base64,', 'png;base64,x'): 'image not shown',
  },
)


@pytest.mark.parametrize('faults', FAULTS, ids=['page 1', 'page 2'])
def test_the_checks_can_fail(watched, make_workdir, tmp_path, faults):
  workdir = make_workdir(tmp_path / 'run', classes=2, depth=1, attack=False)
  path = pathlib.Path(page_lib.write_page(str(workdir)))
  text = path.read_text()
  problems = '\n'.join(watched.check(path))
  assert not [words for words in faults.values() if words and words in problems]
  for old, new in faults:
    assert old in text, old
    text = text.replace(old, new)
  path.write_text(text)
  problems = '\n'.join(watched.check(path))
  assert not [words for words in faults.values() if words not in problems]


def test_a_blank_page_is_seen_to_be_blank(watched, tmp_path):
  path = tmp_path / 'blank.html'
  path.write_text('<body style="height:3000px">')
  watched.check(path)
  assert is_blank(watched.page.screenshot(full_page=True))
