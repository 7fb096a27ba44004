"""The report: one HTML file that needs nothing but itself."""

from collections.abc import Callable
import importlib.resources
import os
import sys
from typing import Any

from lipnext_jax import files
from lipnext_jax.data import sources
from lipnext_jax.page import about
from lipnext_jax.page import attacked
from lipnext_jax.page import classes
from lipnext_jax.page import curves
from lipnext_jax.page import data
from lipnext_jax.page import examples
from lipnext_jax.page import gallery
from lipnext_jax.page import markup
from lipnext_jax.page import results
from lipnext_jax.page.data import Run
from lipnext_jax.page.markup import el
from lipnext_jax.page.markup import Html

FILE = 'report.html'

# The browser itself enforces what this page promises: it runs no script and
# fetches nothing. The styles and the images stand in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _results(run: Run) -> Html:
  return markup.join(
    [
      results.results_table(run),
      results.curve_chart(run),
      el(
        'details',
        el('summary', 'The radii in numbers'),
        results.quantile_table(run),
      ),
    ]
  )


def _classes(run: Run) -> Html:
  return markup.join(
    [
      classes.histograms(run),
      el(
        'div',
        el('div', classes.confusion(run)),
        el('div', classes.class_table(run)),
        class_='columns',
      ),
    ]
  )


def _outside(run: Run) -> Html:
  return markup.join(
    [
      examples.adversarial(run),
      attacked.distance_chart(run),
      attacked.attack_table(run),
    ]
  )


_SECTIONS: tuple[tuple[str, str, Callable[[Run], Html]], ...] = (
  ('results', 'Certified accuracy', _results),
  ('classes', 'Class by class', _classes),
  ('images', 'Most and least robust images', examples.gallery),
  ('adversarial', 'Attacks, just outside the ball', _outside),
  ('bound', 'The Lipschitz bound, layer by layer', curves.lipschitz),
  ('training', 'Training', curves.training),
  ('meaning', 'What the certificate says', about.meaning),
  ('provenance', 'Provenance', about.provenance),
)


def build_page(run: Run) -> str:
  """The whole document, a function of the run's files alone."""
  name = str(run.config.get('dataset.name', run.name))
  title = f'{name}: certified robustness'
  style = importlib.resources.files('lipnext_jax.page') / 'page.css'
  links = [
    el('li', el('a', heading, href=f'#{key}')) for key, heading, _ in _SECTIONS
  ]
  sections = [
    el('section', el('h2', heading, id=f'{key}-heading'), make(run),
       id=key, aria_labelledby=f'{key}-heading')
    for key, heading, make in _SECTIONS
  ]  # fmt: skip
  head = el(
    'head',
    el('meta', charset='utf-8'),
    el('meta', http_equiv='Content-Security-Policy', content=_POLICY),
    el('meta', name='viewport', content='width=device-width, initial-scale=1'),
    el('meta', name='color-scheme', content='light dark'),
    el('title', title),
    el('style', Html(style.read_text(encoding='utf-8'))),
  )
  model = str(run.config.get('model.name', ''))
  step = markup.count(run.evaluation['step'])
  byline = ', '.join(
    part for part in (model, f'run {run.name}', f'step {step}') if part
  )
  body = el(
    'body',
    el('a', 'Skip to the results', href='#results', class_='skip'),
    el(
      'header',
      el('p', byline, class_='byline'),
      el('h1', title),
      results.verdict(run),
      el('nav', el('ul', *links), aria_label='Contents'),
    ),
    el('main', *sections),
    el(
      'footer',
      el('p', 'Written by lipnext_jax from the files of the run.'),
    ),
  )
  return f'<!doctype html>\n{el("html", head, body, lang="en")}\n'


def write_page(workdir: str) -> str:
  """Writes `report.html` into a workdir that holds an evaluation.

  Returns:
    Its path.

  Raises:
    UserError: the files of an evaluation are missing or unreadable.
  """
  path = os.path.join(workdir, FILE)
  files.write_text(path, build_page(data.read_run(workdir)))
  return path


def report_evaluation(
  workdir: str, result: Any, source: sources.Source
) -> str | None:
  """`gallery.npz` and the page, at the end of an evaluation.

  The numbers are written by then, and a picture must not cost a run: whatever
  goes wrong is only said.

  Args:
    workdir: holds `eval.json` and `radii.csv` of the evaluation.
    result: the `evaluate.Evaluation`.
    source: the split that it evaluated.

  Returns:
    The page's path, or None after a line on stderr.
  """
  try:
    gallery.write_gallery(workdir, result, source)
    return write_page(workdir)
  except Exception as error:
    print(f'no {FILE}: {error!r}', file=sys.stderr, flush=True)
    return None
