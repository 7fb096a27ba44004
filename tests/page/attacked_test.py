import numpy as np
import pytest

from lipnext_jax.page import attacked
from lipnext_jax.page import data
from lipnext_jax.page import results


def test_broken_certificates_are_the_first_thing_said(make_workdir, tmp_path):
  workdir = make_workdir(tmp_path / 'run', broken=2)
  verdict = results.verdict(data.read_run(str(workdir)))
  assert 'role="alert"' in verdict
  assert '2\u00a0fast certificates broken' in verdict
  assert 'Images 0, 1.' in verdict


def test_unbroken_certificates_are_said_to_be(workdir):
  verdict = results.verdict(data.read_run(str(workdir)))
  assert 'alert' not in verdict
  assert (
    '0 fast certificates broken</strong> in 12\u00a0345 attack runs up'
    in verdict
  )


def test_attacks_inside_the_ball_are_counted(workdir):
  run = data.read_run(str(workdir))
  assert '0 of them inside' in attacked.distance_chart(run)
  worse = {**run.attacked, 'distance': 0.99 * run.attacked['radius']}
  found = int(np.sum(worse['radius'] > 0))
  text = attacked.distance_chart(run._replace(attacked=worse))
  assert f'{found} of them inside the certified ball' in text
  assert 'the closest at 0.990 times its radius' in text


def test_of_many_attacks_the_closest_are_drawn(workdir):
  run = data.read_run(str(workdir))
  n = 5000
  arrays = {
    'id': np.arange(n),
    'radius': np.ones(n),
    'distance': np.random.default_rng(0).permutation(np.linspace(0.9, 3, n)),
  }
  markup = attacked.distance_chart(run._replace(attacked=arrays))
  assert markup.count('<circle') == 600
  for i in np.argsort(arrays['distance'])[:300]:
    assert f'image {i}: ' in markup


def test_every_attack_is_listed_and_the_constant_from_both_sides(workdir):
  markup = attacked.attack_table(data.read_run(str(workdir)))
  row = '<th scope="row">pgd</th><td>10\u00a0000</td><td>900</td>'
  assert row in markup
  assert 'at least 0.9871' in markup
  assert 'Attacks on fast certificates (seed 0)' in markup


@pytest.mark.parametrize('missing', ['lipschitz_lower_bound', 'attacks'])
def test_a_summary_may_lack_what_is_not_required(workdir, missing):
  run = data.read_run(str(workdir))
  attack = {k: v for k, v in run.attack.items() if k != missing}
  markup = attacked.attack_table(run._replace(attack=attack))
  assert ('at least' in markup) == (missing == 'attacks')
  assert ('<table' in markup) == (missing != 'attacks')


def test_a_run_that_was_not_attacked_says_so_and_shows_nothing(workdir):
  run = data.read_run(str(workdir))
  run = run._replace(attack=None, attacked=None, notes={'attack.json': 'why'})
  assert 'why' in attacked.status(run)
  assert attacked.attack_table(run) is None
  assert attacked.distance_chart(run) is None
