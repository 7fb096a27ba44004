import numpy as np
import pytest

from lipnext_jax.attacks import run
from tests.attacks import targets

pytestmark = pytest.mark.usefixtures('optimized')

SETTINGS = run.Settings(
  restarts=2, steps=20, searches=(('apgd', 'rival_margin'),),
  rounds=10, candidates=8,
)  # fmt: skip


def attack(target, epsilons=()):
  totals = []
  ledger = run.attack_target(target, epsilons, SETTINGS, tick=totals.append)
  assert set(totals) == {len(totals)}
  return ledger


@pytest.fixture(scope='module')
def attacked():
  return attack(targets.exact(), (0.1, 0.2))


NOISE = np.random.default_rng(0).normal(size=(1, 16, 16)) / 100


def one_distance(target):
  """Divides by √2 for every pair: rows of opposite signs are 2 apart."""
  top = np.sort(target.logits(target.images), axis=-1)
  return target._replace(radii=(top[:, -1] - top[:, -2]) / 2**0.5)


def head_not_normalised(target):
  """Divides by unit rows where the head has rows of norm 3."""
  return target._replace(radii=3 * target.radii)


def tie_overlooked(target):
  """Uses the largest *different* logit. Class 1 is class 0 plus 1e-6."""
  predictions = np.where(target.predictions == 1, 0, target.predictions)
  radii = np.full(len(predictions), 0.1)
  return target._replace(radii=radii, predictions=predictions)


def tie(kernel):
  return kernel[[0, 0, 2]]


@pytest.mark.parametrize(
  ('path', 'change', 'fault', 'least'),
  [
    # Λ = 1, which nobody proved.
    ('blocks/M', lambda m: 1.001 * m, targets.assume, 13),
    ('blocks/M', lambda m: m + NOISE, targets.assume, 3),
    ('head/kernel', lambda k: [k[0], -k[0], k[2]], one_distance, 6),
    ('head/kernel', np.copy, head_not_normalised, 13),
    ('head/kernel', tie, tie_overlooked, 6),
  ],
)
def test_wrong_certificates_are_broken(path, change, fault, least):
  params = targets.change(path, change)
  if change is tie:  # The first class is answered, until the bias grows.
    params['head']['bias'][1] += np.float32(1e-6)
  proved = targets.certified(params)
  assert np.sum(attack(fault(proved)).broken) >= least
  assert not attack(proved).broken.any()


def test_the_true_certificates_hold_and_are_met(attacked):
  """Every image has a counterexample just outside its ball."""
  assert not attacked.broken.any()
  ratios = attacked.anywhere.distances / attacked.target.radii
  assert np.all((ratios >= 1) & (ratios < 1.005))
  # Sixteen images; two restarts in two sets, and three walks.
  assert attacked.certified_runs == 16 * (2 * 2 + 3)
  found, search = attacked.attacks, 'apgd rival_margin'
  assert found[f'{search}, in [0, 1], at the radius']['runs'] == 32
  assert found[f'{search}, anywhere, beyond the radius']['successes'] >= 16
  assert found['floating-point walk'] == {'runs': 48, 'successes': 0}


def test_summaries_say_what_the_ledger_knows(attacked):
  target = attacked.target
  labels = (target.predictions + (np.arange(16) < 2)) % 3  # Two are wrong.
  summary = run.summarise(attacked, labels, (0.1, 0.2))
  assert summary['clean'] == 100 * 14 / 16
  assert summary['broken_ids'] == []
  assert 1 <= summary['least_ratio'] < 1.005
  for epsilon, row in summary['epsilons'].items():
    held = (target.radii > float(epsilon))[2:]
    # Tight, and no radius lies within 0.5 % of these ε.
    assert row['cra'] == row['robust'] == 100 * np.sum(held) / 16
    assert row['gap'] == 0
    assert row['robust_in_box'] >= row['robust']
  ledger = attack(target._replace(radii=target.radii * np.eye(16)[3] * 1.1))
  assert run.summarise(ledger, labels, (0.1,))['broken_ids'] == [3]


def test_what_is_shown_is_adversarial_and_close(attacked):
  labels = (attacked.target.predictions + (np.arange(16) < 1)) % 3
  stored = run.arrays(attacked, labels)
  assert stored['id'].tolist() == list(range(16))
  rows = stored['shown_id']
  assert len(rows) == 4
  assert 0 not in rows  # Wrong already: nothing to show.
  original, adversarial = stored['original'], stored['adversarial']
  assert original.shape == adversarial.shape == (4, 4, 4, 1)
  assert np.all((adversarial >= 0) & (adversarial <= 1))
  apart = np.linalg.norm((adversarial - original).reshape(4, -1), axis=-1)
  # Differences of float32 pixels near 1.
  np.testing.assert_allclose(apart, stored['distance_in_box'][rows], atol=1e-6)
  assert np.all(stored['adversarial_prediction'] != stored['prediction'][rows])
  anywhere, in_box = attacked.anywhere.distances, attacked.in_box.distances
  assert [*stored['distance']] == [*anywhere] != [*in_box]
