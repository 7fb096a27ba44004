import re

import numpy as np
import pytest

from lipnext_jax.page import classes
from lipnext_jax.page import data


@pytest.fixture
def run(workdir):
  return data.read_run(str(workdir))


@pytest.fixture(scope='module')
def many(make_workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp('many')
  return data.read_run(str(make_workdir(path, classes=100, per_class=3)))


def brute_confusion(run, label, prediction):
  return sum(
    (a, b) == (label, prediction)
    for a, b in zip(run.labels, run.predictions, strict=True)
  )


def test_the_confusion_matrix_counts_every_pair(run):
  markup = classes.confusion(run)
  body = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', markup)
  assert len(body) == 10
  for name, row in body:
    cells = [int(n) for n in re.findall(r'>(\d+)</td>', row)]
    assert cells == [brute_confusion(run, int(name), j) for j in range(10)]


def test_a_class_that_is_only_predicted_has_a_column(run):
  run = run._replace(predictions=np.where(run.ids == 0, 77, run.predictions))
  assert '<th scope="col">77</th>' in classes.confusion(run)


def test_many_classes_become_the_most_frequent_mistakes(many):
  markup = classes.confusion(many)
  assert 'taken for' in markup
  pairs = classes.confused_pairs(many)
  counts = [number for _, _, number in pairs]
  assert counts == sorted(counts, reverse=True)
  assert sum(counts) == np.sum(~many.correct)
  for label, prediction, number in pairs:
    assert number == brute_confusion(many, label, prediction)
  assert markup.count('<tr>') == 1 + min(20, len(pairs))


def test_no_mistake_is_said_to_be_none(many):
  run = many._replace(predictions=many.labels)
  assert 'Every image is classified as labelled' in classes.confusion(run)


def test_histograms_show_the_share_of_each_class(run):
  markup = classes.histograms(run)
  assert markup.count('<svg role="img"') == 10
  radii = classes.class_radii(run)
  right = np.array([run.radii[i] for i in range(120) if run.correct[i]])
  edges = np.linspace(0, right.max(), 25)
  shares = [np.histogram(r[r > 0], edges)[0] / len(r) for r in radii.values()]
  top = max(map(max, shares))
  paths = re.findall(r'<path d="([^"]*)" class="bars"', markup)
  for path, share in zip(paths, shares, strict=True):
    heights = [1 - float(v) / 1000 for v in re.findall(r'V([\d.]+)H', path)]
    np.testing.assert_allclose(
      heights, [s / top for s in share if s > 0], atol=1e-3
    )


def test_of_many_classes_both_ends_are_shown(many):
  chosen, words = classes.shown_classes(many)
  medians = {c: np.median(r) for c, r in classes.class_radii(many).items()}
  assert len(set(chosen)) == 20
  rest = [medians[c] for c in medians if c not in chosen]
  assert max(medians[c] for c in chosen[:10]) <= min(rest)
  assert min(medians[c] for c in chosen[10:]) >= max(rest)
  assert 'Of 100 classes' in words
  assert classes.histograms(many).count('<svg role="img"') == 20


def test_the_table_has_the_accuracies_of_each_class(run):
  markup = classes.class_table(run)
  for c in range(10):
    mine = run.labels == c
    clean = 100 * np.mean(run.predictions[mine] == c)
    certified = 100 * np.mean(run.correct[mine] & (run.radii[mine] > 0.25))
    expected = ''.join(
      f'<td>{cell}</td>'
      for cell in (12, f'{clean:.2f}\u00a0%', f'{certified:.2f}\u00a0%')
    )
    assert f'<th scope="row">class {c}</th>{expected}' in markup


def test_classes_go_by_their_names_where_they_have_some(run, many):
  names = [f'name{c}' for c in range(10)]
  named = run._replace(class_names=names)
  assert '<th scope="row">name3 3</th>' in classes.confusion(named)
  assert '<th scope="row">name3</th>' in classes.class_table(named)
  assert '<b>name3</b>' in classes.histograms(named)
  first, second, _ = classes.confused_pairs(many)[0]
  many = many._replace(class_names=[f'name{c}' for c in range(100)])
  assert f'name{first} taken for name{second}<' in classes.confusion(many)
