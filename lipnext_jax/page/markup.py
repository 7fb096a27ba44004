"""HTML that cannot be injected into, and numbers as people read them."""

from collections.abc import Iterable
import html
import math

_VOID = ('img', 'meta', 'br')  # Elements of this page that have no end tag.
_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_SPACE = '\u00a0'  # A number stays on one line with its unit.


class Html(str):
  """Markup. Only `el`, `join` and constants of this package make it."""


def el(tag: str, /, *children: object, **attributes: object) -> Html:
  """An element; whatever is not `Html` among its children is escaped.

  Args:
    tag: its name.
    *children: `Html`, or text; None is left out.
    **attributes: `class_` → class, `aria_label` → aria-label; None and False
      are left out, True stands without a value.

  >>> el('b', '<script>', class_='x', title='"')
  '<b class="x" title="&quot;">&lt;script&gt;</b>'
  """
  parts = [f'<{tag}']
  for key, value in attributes.items():
    key = key.rstrip('_').replace('_', '-')
    if value is True:
      parts.append(f' {key}')
    elif value is not None and value is not False:
      parts.append(f' {key}="{html.escape(str(value))}"')
  parts.append('>')
  if tag not in _VOID:
    parts += [join(children), f'</{tag}>']
  return Html(''.join(parts))


def join(children: Iterable[object]) -> Html:
  """Children one after the other, text escaped.

  >>> join([el('i', 'a'), ' & ', None])
  '<i>a</i> &amp; '
  """
  return Html(
    ''.join(
      child if isinstance(child, Html) else html.escape(str(child))
      for child in children
      if child is not None
    )
  )


def table(
  caption: object,
  head: Iterable[object],
  rows: Iterable[Iterable[object]],
  class_: str | None = None,
) -> Html:
  """A table in a box of its own that scrolls when it must.

  Args:
    caption: says what the numbers are.
    head: the column headers.
    rows: each begins with its row header.
    class_: of the table.
  """
  body = []
  for first, *rest in rows:
    cells = [value if _is_cell(value) else el('td', value) for value in rest]
    body.append(el('tr', el('th', first, scope='row'), *cells))
  header = el('tr', *(el('th', name, scope='col') for name in head))
  return scrolling(
    el(
      'table',
      el('caption', el('span', caption)),
      el('thead', header),
      el('tbody', *body),
      class_=class_,
    ),
    'Table',
  )


def _is_cell(value: object) -> bool:
  return isinstance(value, Html) and value.startswith('<td')


def scrolling(content: Html, label: str) -> Html:
  """A box that scrolls sideways, by keyboard too; the page never does."""
  return el('div', content, class_='scroll', tabindex=0, role='group',
            aria_label=f'{label}, scrolls sideways')  # fmt: skip


def percent(value: float) -> str:
  """Of a value in per cent.

  >>> percent(99.4444).replace(_SPACE, ' ')
  '99.44 %'
  """
  return f'{value:.2f}{_SPACE}%' if math.isfinite(value) else '–'


def radius(value: float) -> str:
  """An ℓ2 length in [0, 1] pixel units.

  >>> radius(0.51978), radius(float('inf')), radius(float('nan'))
  ('0.520', '∞', 'not a number')
  """
  if math.isnan(value):
    return 'not a number'
  return f'{value:.3f}' if math.isfinite(value) else '∞'


def grey(value: float) -> str:
  """The same length in grey levels: × 255.

  >>> grey(0.25)
  '63.8'
  """
  return f'{255 * value:.1f}' if math.isfinite(value) else '∞'


def count(value: int) -> str:
  """With separated thousands.

  >>> count(12345).replace(_SPACE, ' ')
  '12 345'
  """
  return f'{value:,}'.replace(',', _SPACE)


def scientific(value: float) -> str:
  """Two digits and a power of ten.

  >>> scientific(6.03e-6).replace(_SPACE, ' '), scientific(0.0)
  ('6.0 × 10⁻⁶', '0')
  """
  if not value or not math.isfinite(value):
    return f'{value:.0f}'
  digits, exponent = f'{value:.1e}'.split('e')
  return f'{digits}{_SPACE}×{_SPACE}10{superscript(int(exponent))}'


def near_one(value: float) -> str:
  """A factor: what it is less 1, where that is small.

  >>> [near_one(v).replace(_SPACE, ' ') for v in (1 + 6e-6, 1 - 5e-7, 0.9871)]
  ['1 + 6.0 × 10⁻⁶', '1 − 5.0 × 10⁻⁷', '0.9871']
  """
  excess = value - 1
  if not abs(excess) < 1e-2:  # Not a number, too.
    return f'{value:.4f}'
  sign = '−' if excess < 0 else '+'
  return f'1{_SPACE}{sign}{_SPACE}{scientific(abs(excess))}'


def superscript(exponent: int) -> str:
  """An exponent, raised.

  >>> superscript(-12)
  '⁻¹²'
  """
  return str(exponent).translate(_SUPERSCRIPT)


def plural(number: int, noun: str) -> str:
  """A count with its noun.

  >>> plural(1, 'image').replace(_SPACE, ' ')
  '1 image'
  """
  return f'{count(number)}{_SPACE}{noun}{"" if number == 1 else "s"}'
