import csv
import json
import os

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from lipnext_jax import evaluate
from lipnext_jax.data import views
from lipnext_jax.parallel import mesh as mesh_lib
from lipnext_jax.report import evaluation
from lipnext_jax.report import records

RESULT = evaluate.Evaluation(
  ids=np.arange(3),
  labels=np.array([4, 5, 6]),
  predictions=np.array([4, 5, 0]),
  radii=np.array([0.1, 1 / 3, 0], np.float32),
  lipschitz_bound=1.00001,
  lipschitz_bounds={'Q': [1.00001]},
)


def test_radii_keep_all_float32_digits(workdir):
  table = np.genfromtxt(workdir / 'radii.csv', delimiter=',', names=True)
  with np.load(workdir / 'attack.npz') as known:
    for name in ('id', 'label', 'prediction', 'radius'):
      assert (table[name].astype(known[name].dtype) == known[name]).all()
  assert not [name for name in os.listdir(workdir) if name.endswith('.tmp')]


def test_the_table_shows_every_number_and_none_too_high(capsys):
  epsilons = [36 / 255, 0.25, 0.05, 0.141176]  # Six digits of 36/255 are less.
  summary = RESULT.summary(epsilons) | {'epsilons': epsilons}
  evaluation.print_table(summary, 'Title')
  text = capsys.readouterr().out
  # 2/3 is clean, and certified at 0.05; the float exceeds 1 + 1e-5.
  for part in ('Title', ' 66.67 %', ' 33.33 %', ' 66.66 %', '1.1e-05'):
    assert part in text
  names = [line.split()[5] for line in text.splitlines()[3:7]]
  assert names == ['36/255', '0.25', '0.05', '0.141176']
  bounds = {'lipschitz_bound': 4.25, 'logit_error': 3.14e-11}
  evaluation.print_table(summary | bounds, 'Title')
  text = capsys.readouterr().out
  assert ' 4.25 (proved)' in text
  assert ' 3.2e-11 (bounded, subtracted)' in text


class Named:
  """A split with file names."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    return {'image': np.full((4, 4, 3), index, np.uint8)}

  def names(self):
    return ['cat/a,b.png', 'cat/\udcff\n.png', 'dog/"c".png']


def test_files_and_classes_keep_their_names(tmp_path, tiny_config, capsys):
  names = [f'class of {i}' for i in range(7)]
  folder = str(tmp_path)
  mesh = mesh_lib.make_mesh(tiny_config.mesh)
  start = records.describe_run(mesh) | {'data': {'class_names': names}}
  (tmp_path / 'run.json').write_text(json.dumps([start]))
  batch = np.zeros((9, 4, 4, 3), np.uint8)
  records.write_inputs(folder, batch, Named())
  evaluation.write(folder, tiny_config, 7, RESULT, Named(), names)
  with open(tmp_path / 'radii.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['file'] for row in rows] == [
    'cat/a,b.png',
    'cat/\\udcff\\n.png',
    'dog/"c".png',
  ]
  assert rows[2]['label_name'] == 'class of 6'
  assert rows[2]['prediction_name'] == 'class of 0'
  page = (tmp_path / 'report.html').read_text()
  for part in ('cat/a,b.png', 'class of 6 taken for class of 0', '0.25'):
    assert part in page
  # Four images to train on, and the three of the split.
  assert page.count('As training sees them, ') == 4
  assert page.count('As evaluation sees them, ') == 3


class Unreadable(views.Source):
  """A split whose images cannot be read."""

  def __len__(self):
    return 3

  def __getitem__(self, index):
    raise OSError('the disk is gone')


def test_the_numbers_survive_a_page_that_fails(tmp_path, tiny_config, capsys):
  made = evaluation.write(str(tmp_path), tiny_config, 7, RESULT, Unreadable())
  assert json.loads((tmp_path / 'eval.json').read_text()) == made
  (line,) = capsys.readouterr().err.splitlines()
  assert line == "no report.html: OSError('the disk is gone')"


ROWS = st.lists(
  st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.2, 0.3, 9.0])),
  max_size=60,
)


@given(rows=ROWS)
def test_the_chosen_are_the_extremes_of_their_kind(rows):
  right = np.array([c for c, _ in rows], bool)
  radii = np.array([r for _, r in rows])
  groups = evaluation.choose(np.zeros(len(rows)), np.where(right, 0, 1), radii)
  chosen = np.concatenate(list(groups.values()))
  assert len(set(chosen)) == len(chosen)
  certified = {i for i in range(len(rows)) if right[i] and radii[i] > 0}
  both = {*groups['robust'], *groups['fragile']}
  assert both <= certified
  assert len(both) == min(len(certified), 16)
  for i in certified - both:
    assert all(radii[i] <= radii[j] for j in groups['robust'])
    assert all(radii[i] >= radii[j] for j in groups['fragile'])
  wrong = {i for i in range(len(rows)) if not right[i]}
  assert {*groups['wrong']} <= wrong
  assert len(groups['wrong']) == min(len(wrong), 8)
