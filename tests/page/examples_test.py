import re

import numpy as np
import pytest

from lipnext_jax.page import data
from lipnext_jax.page import examples
from lipnext_jax.page import png


@pytest.fixture
def run(workdir):
  return data.read_run(str(workdir))


def test_images_are_those_of_the_gallery_with_their_radii(run):
  markup = examples.gallery(run)
  assert markup.count('<img ') == 24
  for row in (0, 9, 23):
    assert png.data_uri(run.gallery['image'][row]) in markup
    name, label = run.gallery['id'][row], run.gallery['label'][row]
    alt = f'Image {name}, class {label}, predicted class'
    assert f'alt="{alt}' in markup
  assert re.findall('<h3>([^<]*)</h3>', markup) == [
    'Most robust',
    'Least robust',
    'Wrong, with the largest radii',
  ]


def test_groups_without_images_are_left_out(run):
  rows = run.gallery['group'] == 'robust'
  part = {name: array[rows] for name, array in run.gallery.items()}
  assert examples.gallery(run._replace(gallery=part)).count('<h3>') == 1
  none = {name: array[:0] for name, array in run.gallery.items()}
  assert 'no example' in examples.gallery(run._replace(gallery=none))


def test_adversarial_distances_are_those_of_the_images(run):
  markup = examples.adversarial(run)
  attacked = run.attacked
  assert markup.count('<img ') == 3 * 4
  for k in range(4):
    d = np.sqrt(
      ((attacked['adversarial'][k] - attacked['original'][k]) ** 2).sum()
    )
    assert f'at distance {d:.3f} ' in markup
    assert png.data_uri(attacked['adversarial'][k]) in markup
  assert markup.count('outside the ball') == 4


def test_an_image_inside_the_ball_is_said_to_be_inside(run):
  attacked = run.attacked
  close = 0.5 * (attacked['original'] + attacked['adversarial'])
  inside = run._replace(attacked={**attacked, 'adversarial': close})
  assert 'inside the ball' in examples.adversarial(inside)


def test_the_difference_is_enlarged_as_far_as_it_says(run):
  one = {
    **run.attacked,
    'shown_id': np.array([5]),
    'original': np.full((1, 1, 2, 1), 0.5),
    'adversarial': np.array([[[[0.5], [0.46]]]]),
    'adversarial_prediction': np.array([3]),
  }
  markup = examples.adversarial(run._replace(attacked=one))
  assert 'difference × 10<' in markup  # 10 × 0.04 <= 0.5 < 20 × 0.04.
  assert png.data_uri(np.array([[[0.5], [0.1]]])) in markup


def test_nothing_to_show_is_said(run):
  none = {
    name: array[:0] if name in data._SHOWN else array
    for name, array in run.attacked.items()
  }
  assert 'nothing to show' in examples.adversarial(run._replace(attacked=none))
  bare = run._replace(attacked=None, notes={'attack.json': 'make it <so>'})
  assert 'make it &lt;so&gt;' in examples.adversarial(bare)


def test_classes_go_by_their_names_where_they_have_some(run):
  names = [f'name{c}' for c in range(10)]
  run = run._replace(class_names=names)
  label = run.gallery['label'][0]
  assert f', name{label}</span>' in examples.gallery(run)
  before = run.attacked['prediction'][run.attacked['shown_id'][0]]
  assert f'The answer changes from name{before} to' in examples.adversarial(run)
