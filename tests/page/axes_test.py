from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lipnext_jax.page import axes

VALUES = st.lists(
  st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(float('nan')),
  max_size=5,
)


@given(values=VALUES, log=st.booleans())
def test_every_axis_holds_its_values_and_has_ticks(values, log):
  values = np.array(values, float)
  axis = axes.axis_of('x', values, log=log)
  shown = values[np.isfinite(values) & ((values > 0) | (not log))]
  assert axis.low < axis.high
  if len(shown) and not log:
    assert axis.low <= shown.min()
    assert axis.high >= shown.max()
  places = [float(axis.place(value)) for value, _ in axis.ticks()]
  assert all(0 <= place <= 1 for place in places)
  assert places == sorted(places)
  assert len(axis.ticks()) < 12
  if not log and axis.high - axis.low > 1e-6 * max(abs(axis.high), 1):
    assert len(places) >= 2


@pytest.mark.parametrize('log', [False, True])
def test_ticks_lie_where_their_labels_say(log):
  axis = axes.Axis('x', 0.02, 9.0, log=log)
  for value, label in axis.ticks():
    assert float(label) == pytest.approx(value)
    if log:
      expected = np.log(value / 0.02) / np.log(9 / 0.02)
    else:
      expected = (value - 0.02) / (9 - 0.02)
    assert float(axis.place(value)) == pytest.approx(expected)


def test_a_log_axis_of_no_more_than_a_decade_has_ticks_too():
  for high in (1.1e-7, 2e-7, 1e-6):
    assert len(axes.axis_of('x', np.array([1e-7, high]), log=True).ticks()) > 2


def test_values_outside_lie_on_the_border():
  axis = axes.Axis('x', 1.0, 10.0, log=True)
  assert axis.place(np.array([0.0, 100.0, np.inf])).tolist() == [0, 1, 1]


def test_whole_axes_have_whole_ticks():
  axis = axes.Axis('layer', 0.5, 2.5, whole=True)
  assert [label for _, label in axis.ticks()] == ['1', '2']
  assert '1.5' in [label for _, label in axis._replace(whole=False).ticks()]
