from lipnext_jax.page import markup
from lipnext_jax.page.markup import el


def test_text_and_attributes_are_escaped_and_markup_is_not():
  nasty = '"><script>alert(1)</script>&'
  element = el('p', el('b', nasty), nasty, title=nasty)
  assert '<script' not in element
  assert element.count('&lt;script&gt;') == 3
  assert element.startswith('<p title="&quot;&gt;')
  # A plain string stays text however it looks; only `el` makes markup.
  assert '<b>' not in markup.join([str(el('b', 'x'))])
  assert isinstance(element, markup.Html)


def test_attributes_may_be_absent_or_without_a_value():
  assert el('details', open=True, id=None, hidden=False) == (
    '<details open></details>'
  )
  assert el('img', alt='') == '<img alt="">'


def test_a_table_has_headers_in_both_directions():
  table = markup.table('c', ['a', 'b'], [['r', el('td', 1, class_='x')]])
  assert table.count('scope="col"') == 2
  assert table.count('scope="row"') == 1
  assert table.count('<td') == 1
  assert '<caption><span>c</span></caption>' in table


def test_numbers_that_are_none_are_said_to_be():
  assert markup.percent(float('nan')) == '–'
  assert markup.grey(float('inf')) == '∞'
  assert markup.radius(float('nan')) == 'not a number'
  assert markup.scientific(float('inf')) == 'inf'
  assert markup.plural(2, 'x').endswith('xs')
