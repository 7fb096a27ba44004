import re

from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lipnext_jax.report import charts

RADII = st.floats(0, 3, width=32) | st.sampled_from([0.0, 0.25, float('inf')])


@given(st.lists(RADII, min_size=1, max_size=40))
def test_the_curve_is_the_definition_at_every_radius(radii):
  radii = np.array(radii)
  x, y = charts.accuracy_curve(radii, 4.0)
  assert (x[0], x[-1]) == (0, 4)
  # At its own points, where radii tie with ε, and halfway between them.
  for epsilon in [*x, *((x[1:] + x[:-1]) / 2)]:
    shown = y[np.searchsorted(x, epsilon, side='right') - 1]
    assert shown == pytest.approx(100 * np.mean(radii > epsilon))


def test_a_curve_of_many_radii_is_exact_where_it_is_evaluated():
  radii = np.random.default_rng(0).random(50_000)
  x, y = charts.accuracy_curve(radii, 1.0)
  assert len(x) == 1000
  for i in (0, 1, 500, 999):
    assert y[i] == pytest.approx(100 * np.mean(radii > x[i]))


ANY = st.floats(0) | st.just(float('nan'))


@given(st.lists(ANY, max_size=9), st.booleans())
@example([5e-324], False)
def test_an_axis_holds_all_it_can_show(values, log):
  axis = charts.make_axis('x', np.array(values), log=log)
  assert axis.low < axis.high
  assert len(axis.ticks) <= 8
  off = np.clip(axis.ticks, axis.low, axis.high) - axis.ticks
  assert (abs(off) <= 1e-8 * (axis.high - axis.low)).all()
  shown = np.sort([v for v in values if 1e-299 * log <= v < 1e300])
  places = axis.place(np.array([*shown, np.nan, np.inf]))
  assert np.isnan(places[-2:]).all()
  assert (np.diff([0, *places[:-2], 100]) >= 0).all()


def test_a_long_line_keeps_its_extremes_and_its_gaps():
  y = np.zeros(10_000)
  y[777], y[5000] = 5.0, np.nan
  x_axis, y_axis = charts.make_axis('x', 0, 1e4), charts.make_axis('y', 0, 5)
  path = charts.path(x_axis, y_axis, np.arange(10_000), y)
  points = re.findall(r'[ML]([\d.]+) ([\d.]+)', path)
  assert len(points) <= 400
  assert ('7.77', '0.00') in points
  assert path.count('M') == 2


def test_steps_go_across_before_they_go_down():
  axis = charts.make_axis('x', 0, 1, whole=True)
  assert axis.ticks == [0, 1]
  path = charts.path(axis, axis, [0, 0.5, 1], [1, 0.5, 0.5], steps=True)
  assert path == 'M0.00 0.00H50.00V50.00H100.00V50.00'
