import re

import numpy as np
import pytest

from lipnext_jax.page import axes
from lipnext_jax.page import charts

UNIT = axes.Axis('x', 0.0, 1.0)


def draw(*series, **options):
  return charts.plot('key', 'Title', 'Words', series, UNIT, UNIT, **options)


def points(markup):
  (path,) = re.findall(r'<path d="([^"]*)" class="line', markup)
  return path


def test_a_line_goes_where_the_values_are_and_stops_where_there_are_none():
  x = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
  y = np.array([0.0, 1.0, np.nan, 0.5, 0.25])
  assert points(draw(charts.Series('a', x, y))) == (
    'M0.0 1000.0L250.0 0.0M750.0 500.0L1000.0 750.0'
  )


def test_a_step_falls_at_its_point_not_before():
  series = charts.Series(
    'a', np.array([0.0, 0.5]), np.array([1.0, 0.0]), 'step'
  )
  assert points(draw(series)) == 'M0.0 0.0H500.0V1000.0'


def test_titles_and_descriptions_are_escaped_and_tied_to_the_picture():
  series = charts.Series(
    '<a>', np.zeros(1), np.zeros(1), 'dots', titles=['<t>']
  )
  markup = charts.plot('key', '<T>', '<D>', [series] * 2, UNIT, UNIT)
  assert 'aria-labelledby="key-title" aria-describedby="key-desc"' in markup
  assert '<title id="key-title">&lt;T&gt;</title>' in markup
  assert '<desc id="key-desc">&lt;D&gt;</desc>' in markup
  assert '<t>' not in markup
  assert '<a>' not in markup
  assert 'class="legend"' in markup
  assert 'class="legend"' not in draw(series)


def test_only_finite_dots_are_drawn_and_not_too_many():
  y = np.full(5000, 0.5)
  assert draw(charts.Series('a', y, y, 'dots')).count('<circle') == 600
  y[1:] = np.nan
  assert draw(charts.Series('a', y, y, 'dots')).count('<circle') == 1


@pytest.mark.parametrize('n', [400, 401, 100_000])
def test_thinning_keeps_the_ends_and_the_extremes(n):
  y = np.random.default_rng(0).normal(size=n)
  y[7] = np.nan
  x, thinned = charts.thin(np.arange(n), y)
  assert len(x) <= 400
  assert (x[0], x[-1]) == (0, n - 1)
  assert np.nanmax(thinned) == np.nanmax(y)
  assert np.nanmin(thinned) == np.nanmin(y)
  assert (np.diff(x) > 0).all()


def test_a_histogram_draws_its_shares():
  markup = charts.histogram(
    'k', 'T', 'c', np.array([0.0, 0.5, 0.25]), UNIT, 0.5, 0.25
  )
  (path,) = re.findall(r'<path d="([^"]*)" class="bars"', markup)
  assert re.findall(r'1000V([\d.]+)H', path) == ['0.0', '500.0']
  assert 'x1="25.00%"' in markup
