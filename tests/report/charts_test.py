import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lipnext_jax.report import charts

RADII = st.floats(0, 3, width=32) | st.sampled_from([0.0, 0.25, float('inf')])


@given(st.lists(RADII, min_size=1, max_size=40))
def test_the_curve_is_the_definition_where_it_is_evaluated(radii):
  x, y = charts.accuracy_curve(np.array(radii), 4.0)
  assert (x[0], x[-1]) == (0, 4)
  for epsilon, shown in zip(x[::50], y[::50], strict=True):
    assert shown == pytest.approx(100 * np.mean(np.array(radii) > epsilon))


ANY = st.floats(0, width=32) | st.just(float('nan'))


@given(st.lists(ANY, max_size=9), st.booleans())
def test_an_axis_holds_all_it_can_show(values, log):
  axis = charts.make_axis('x', np.array(values), log=log)
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
  x_axis, y_axis = charts.make_axis('x', 0, 1e4), charts.make_axis('y', 0, 5)
  path = charts.path(x_axis, y_axis, np.arange(10_000), y)
  points = re.findall(r'[ML]([\d.]+) ([\d.]+)', path)
  assert len(points) <= 1000
  assert ('7.77', '0.00') in points
  assert path.count('M') == 2
