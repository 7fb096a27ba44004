"""Writes numbers for people and JSON: no digit claims more than was proved."""

import decimal
from fractions import Fraction
import math


def down(value: float, digits: int) -> str:
  """Writes a number >= 0 with `digits` decimals, rounded down.

  The float 0.3 is 0.29999999999999998890, for example:

  >>> down(0.3, 2), down(0.5, 2), down(float('inf'), 2)
  ('0.29', '0.50', 'inf')
  """
  if not math.isfinite(value):
    return str(value)
  scale = 10**digits
  whole, part = divmod(math.floor(Fraction(value) * scale), scale)
  return f'{whole}.{part:0{digits}d}'


def up(value: float | decimal.Decimal, digits: int) -> str:
  """Writes a number with `digits` significant digits, rounded up.

  >>> up(4.25, 4), up(1.00049, 4), up(3.14e-11, 2)
  ('4.25', '1.001', '3.2e-11')
  """
  context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
  return f'{float(context.plus(decimal.Decimal(value))):.{digits}g}'


def epsilon_name(epsilon: float) -> str:
  """Writes a radius in [0, 1] pixel units, one of grey levels as k/255.

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


def below(exact: Fraction | float) -> float:
  """Returns the largest float whose shortest decimal is at most `exact`.

  >>> below(0.3), below(0.25), below(255 * Fraction(0.1))
  (0.29999999999999993, 0.25, 25.5)
  """
  return _printed(exact, 0.0)


def below_product(factor: int, value: float) -> float:
  """Returns `below` of an exact product.

  >>> below_product(255, 0.1), below_product(255, math.inf)
  (25.5, inf)
  """
  if not math.isfinite(value):
    return value
  return below(factor * Fraction(value))


def above(exact: Fraction | float) -> float:
  """Returns the smallest float whose shortest decimal is at least `exact`.

  >>> above(0.1), above(0.25)
  (0.10000000000000002, 0.25)
  """
  return _printed(exact, math.inf)


def _printed(exact: Fraction | float, towards: float) -> float:
  value = float(exact)
  if not math.isfinite(value):
    return value
  exact, sign = Fraction(exact), 1 if towards else -1
  while sign * (Fraction(repr(value)) - exact) < 0:
    value = math.nextafter(value, towards)
  return value
