import csv
import functools
import json
import re

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax import evaluate
from lipnext_jax.data import sources
from lipnext_jax.data import views
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.report import records

RESULT = evaluate.Evaluation(
  ids=np.arange(3),
  labels=np.array([4, 5, 6]),
  predictions=np.array([4, 5, 0]),
  radii=np.array([0.1, 1 / 3, 0], np.float32),
  lipschitz_bound=1.00001,
  lipschitz_bounds={'Q': [1.00001]},
)


def a_set(classes=('cat', 'dog'), count=4, train_files='hash'):
  images = np.zeros((count, 8, 8, 1), np.uint8)
  source = views.ArraySource(images, np.arange(count) % 2)
  return sources.Dataset(
    image_shape=(8, 8, 1),
    num_classes=len(classes),
    train=source,
    test=source,
    class_names=classes,
    train_files=train_files,
  )


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
  """Another class or image changes labels, and the split of a folder."""
  names = ('image_shape', 'num_classes', 'class_names', 'resize')
  facts = {name: getattr(a_set(), name) for name in names}
  facts['train_examples'] = 4
  check = functools.partial(records.check_data, str(tmp_path), '/moved')
  check(a_set())  # There is no run yet.
  # Its record is damaged, or one of an earlier version, without `train_files`.
  for start in ({}, {'data': facts}):
    (tmp_path / 'run.json').write_text(json.dumps([start]))
    check(a_set())
  facts['train_files'] = 'hash'
  (tmp_path / 'run.json').write_text(json.dumps([{'data': facts}]))
  check(a_set())
  for now, change in (
    (a_set(('cat', 'cow', 'dog')), '3 classes, not 2'),
    (a_set(('cat', 'cow')), "'cow' as class 1, not 'dog'"),
    (a_set(count=3), '3 training images, not 4'),
    (a_set(train_files='other'), 'training images of other names'),
  ):
    with pytest.raises(errors.ConfigError, match=f'data_dir=.*{change}'):
      check(now)


def test_the_table_shows_every_number_and_none_too_high(capsys):
  epsilons = [36 / 255, 0.25, 0.05, 0.141176]  # Six digits of 36/255 are less.
  summary = RESULT.summary(epsilons) | {'epsilons': epsilons}
  records.print_table(summary, 'Title')
  text = capsys.readouterr().out
  # 2/3 is clean, and certified at 0.05; the float exceeds 1 + 1e-5.
  for part in ('Title', ' 66.67 %', ' 33.33 %', ' 66.66 %', '1.1e-05'):
    assert part in text
  names = [line.split()[5] for line in text.splitlines()[3:7]]
  assert names == ['36/255', '0.25', '0.05', '0.141176']
  bounds = {'lipschitz_bound': 4.25, 'logit_error': 3.14e-11}
  records.print_table(summary | bounds, 'Title')
  text = capsys.readouterr().out
  assert ' 4.25 (proved)' in text
  assert ' 3.2e-11 (bounded, subtracted)' in text


class Named(views.ArraySource):
  """A split with file names."""

  def names(self):
    return ['cat/a,b.png', 'cat/\udcff\n.png', 'dog/"c".png']


def test_a_run_is_told_with_the_names_of_files_and_classes(
  tmp_path, tiny_config, capsys
):
  names = [f'class of {i}' for i in range(7)]
  folder = str(tmp_path)
  start = records.describe_run(mesh_lib.make_mesh(tiny_config.mesh))
  assert start['devices']['count'] == 8
  assert start['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert start['packages']['jax'].count('.') >= 2
  assert re.fullmatch('[0-9a-f]{40}|not a git checkout', start['commit'])
  start['data'] = {'class_names': names}
  (tmp_path / 'run.json').write_text(json.dumps([start]))
  images = np.zeros((9, 4, 4, 3), np.uint8)
  source = Named(images[:3], RESULT.labels)
  records.write_inputs(folder, images, source)
  records.write(folder, tiny_config, 7, RESULT, source, names)
  with open(tmp_path / 'radii.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  names = [row['file'] for row in rows]
  assert names == ['cat/a,b.png', 'cat/\\udcff\\n.png', 'dog/"c".png']
  assert rows[2]['label_name'] == 'class of 6'
  assert rows[2]['prediction_name'] == 'class of 0'
  page = (tmp_path / 'report.html').read_text()
  for part in ('cat/a,b.png', 'class of 6 taken for class of 0', '0.25'):
    assert part in page
  # Four images to train on, and the three of the split.
  assert page.count('As training sees them, ') == 4
  assert page.count('As evaluation sees them, ') == 3
  # The numbers survive a page that fails.
  capsys.readouterr()
  broken = Named(images[:0], RESULT.labels[:0])
  made = records.write(folder, tiny_config, 8, RESULT, broken)
  assert json.loads((tmp_path / 'eval.json').read_text()) == made
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('no report.html: IndexError(')


@given(
  st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 9.0])),
    max_size=60,
  )
)
def test_the_chosen_are_the_extremes_of_their_kind(rows):
  right = np.array([c for c, _ in rows], bool)
  radii = np.array([r for _, r in rows])
  groups = records.choose(np.zeros(len(rows)), np.where(right, 0, 1), radii)
  chosen = np.concatenate([*groups.values()])
  assert len(set(chosen)) == len(chosen)
  assert right[groups['robust']].all()
  assert right[groups['fragile']].all()
  assert not right[groups['wrong']].any()
  # Ascending; the upper half of the certified is never called fragile.
  certified, wrong = np.sort(radii[right & (radii > 0)]), np.sort(radii[~right])
  fragile, robust = np.split(certified, [len(certified) // 2])
  assert [*radii[groups['fragile']]] == [*fragile[:8]]
  assert [*radii[groups['robust']]] == [*robust[::-1][:8]]
  assert [*radii[groups['wrong']]] == [*wrong[::-1][:8]]
