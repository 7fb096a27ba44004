import re

import numpy as np
import pytest

from lipnext_jax.page import curves
from lipnext_jax.page import data


@pytest.fixture
def run(workdir):
  return data.read_run(str(workdir))


def test_every_metric_that_was_written_has_a_chart(run):
  markup = curves.training(run)
  titles = re.findall(r'<figcaption>([^<]*)</figcaption>', markup)
  assert titles == [
    'Accuracy',
    'Loss',
    'Training radius',
    'Learning rate',
    'Orthogonality error',
  ]
  assert markup.count('<circle') == 4  # Two monitored metrics, twice.
  assert 'loss: 3 at step 1, 0.075 at step 40, between 0.075 and 3.' in markup


def test_missing_metrics_leave_their_charts_out(run):
  only = {'train/loss': run.metrics['train/loss']}
  assert curves.training(run._replace(metrics=only)).count('<svg role') == 1
  assert 'no metrics' in curves.training(run._replace(metrics={}))


def test_values_that_are_not_finite_are_gaps_and_counted(run):
  steps = np.arange(1, 5)
  values = np.array([1.0, np.nan, np.inf, 2.0])
  metrics = {'train/loss': (steps, values)}
  markup = curves.training(run._replace(metrics=metrics))
  assert '2 of 4 values not finite' in markup
  (path,) = re.findall(r'<path d="([^"]*)" class="line', markup)
  assert path.count('M') == 2
  metrics = {'train/loss': (steps, np.full(4, np.nan))}
  assert 'no finite value' in curves.training(run._replace(metrics=metrics))


def test_the_factors_are_shown_one_by_one_and_multiply_to_the_bound(run):
  markup = curves.lipschitz(run)
  assert markup.count('<circle') == 16  # R and M of 8 blocks.
  factors = run.evaluation['lipschitz_bounds']
  largest = f'{max(factors["blocks/R"]) - 1:.1e}'.split('e')[0]
  assert f'1\u00a0+\u00a0{largest}' in markup
  product = np.prod([f for layers in factors.values() for f in layers])
  shown = re.findall(
    r'1\u00a0\+\u00a0([\d.]+)\u00a0×\u00a010(⁻\d|⁻.)</td></tr>', markup
  )
  digits, power = shown[-1]
  exponent = -'⁰¹²³⁴⁵⁶⁷⁸⁹'.index(power[1])
  assert float(digits) * 10.0**exponent == pytest.approx(product - 1, rel=0.05)


@pytest.mark.parametrize('factors', [None, {}, {'R': []}])
def test_an_evaluation_without_factors_says_so(run, factors):
  evaluation = run.evaluation | {'lipschitz_bounds': factors}
  assert 'evaluate the run again' in curves.lipschitz(
    run._replace(evaluation=evaluation)
  )


def test_factors_of_exactly_one_can_be_drawn(run):
  evaluation = run.evaluation | {'lipschitz_bounds': {'R': [1.0, 1.0]}}
  assert 'circle' in curves.lipschitz(run._replace(evaluation=evaluation))
