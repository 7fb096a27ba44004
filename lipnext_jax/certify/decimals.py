"""Numbers as text, rounded so that no digit claims more than was proved."""

import decimal


def down(value: float, digits: int) -> str:
  """Writes a number >= 0 with `digits` decimals, rounded down.

  The float 0.3 is slightly less than 3/10:

  >>> down(0.3, 2), down(0.5, 2)
  ('0.29', '0.50')
  """
  with decimal.localcontext(rounding=decimal.ROUND_FLOOR):
    return f'{decimal.Decimal(value):.{digits}f}'


def up(value: float | decimal.Decimal, digits: int) -> str:
  """Writes a number with `digits` significant digits, rounded up.

  >>> up(4.25, 4), up(1.00049, 4), up(3.14e-11, 2)
  ('4.25', '1.001', '3.2e-11')
  """
  context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
  return f'{float(context.plus(decimal.Decimal(value))):.{digits}g}'


def epsilon_name(epsilon: float) -> str:
  """Writes a radius in [0, 1] pixel units, as k/255 if that is shorter.

  >>> [epsilon_name(e) for e in (36 / 255, 0.25, 1.0, 0.141176)]
  ['36/255', '0.25', '1', '0.141176']
  """
  levels = round(255 * epsilon)
  if levels / 255 == epsilon and len(repr(epsilon)) > 6:  # 51/255 is 0.2.
    return f'{levels}/255'
  return f'{epsilon:.6g}'


def excess_up(bound: float) -> str:
  """Writes bound − 1 with two digits, rounded up.

  >>> excess_up(1.25), excess_up(1.2501), excess_up(1.00001)
  ('0.25', '0.26', '1.1e-05')
  """
  return up(decimal.Context(prec=99).subtract(decimal.Decimal(bound), 1), 2)


def below(value: float, factor: int = 1) -> float:
  """Returns factor·value rounded down to 15 digits, which JSON prints as such.

  >>> below(0.3), below(0.25), below(0.1, 255)
  (0.299999999999999, 0.25, 25.5)
  """
  context = decimal.Context(prec=15, rounding=decimal.ROUND_FLOOR)
  return float(context.multiply(decimal.Decimal(value), factor))
