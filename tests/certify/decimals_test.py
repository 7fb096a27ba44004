"""Tests that printed digits never claim more than their number."""

from fractions import Fraction
import json

import numpy as np
import pytest

from lipnext_jax.certify import decimals

NUMBERS = [
  *map(float, np.random.default_rng(0).random(300)),
  *(0.0, 1e-300, 1e-9, 0.3, 0.1, 36 / 255, 1.0, 2.999999999, 1e17, 3e38),
  *map(float, np.float32([0.1, 0.7, 1e-7])),
]


def check_down(fn):
  for value in NUMBERS:
    for count in (2, 6):
      shown = Fraction(fn(value, count))
      assert 0 <= shown <= Fraction(value), 'above'
      assert Fraction(value) < shown + Fraction(1, 10**count)


def check_below(fn):
  """Checks the decimals that JSON prints."""
  for value in NUMBERS:
    for factor in (1, 255):
      exact = factor * Fraction(value)
      shown = Fraction(json.dumps(fn(value, factor)))
      assert exact * (1 - Fraction(1, 10**14)) <= shown <= exact, 'above'


def test_bounds_are_rounded_up():
  for value in NUMBERS:
    exact = Fraction(value)
    for digits, error in ((2, Fraction(1, 10)), (15, Fraction(1, 10**14))):
      assert (
        exact <= Fraction(decimals.up(value, digits)) <= exact * (1 + error)
      )
    excess = Fraction(decimals.excess_up(1 + value))
    assert excess >= Fraction(1 + value) - 1


def test_numbers_are_rounded_down_and_not_to_nearest():
  check_down(decimals.down)
  check_below(decimals.below)
  with pytest.raises(AssertionError, match='above'):
    check_down(lambda value, count: f'{value:.{count}f}')
  with pytest.raises(AssertionError, match='above'):
    check_below(lambda value, factor: factor * value)
