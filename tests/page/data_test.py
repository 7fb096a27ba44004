import json
import shutil

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.page import data


@pytest.fixture
def copy(workdir, tmp_path):
  """A workdir to spoil."""
  return shutil.copytree(workdir, tmp_path / 'copy')


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_everything_that_is_there_is_read(workdir):
  run = data.read_run(str(workdir))
  assert run.name == 'rings'
  assert len(run.ids) == run.evaluation['examples'] == 120
  assert run.epsilon == 0.25
  assert run.gallery is not None
  assert run.attack is not None
  assert run.attacked is not None
  assert len(run.metrics['train/loss'][0]) == 40
  assert len(run.metrics['monitor/clean'][0]) == 2
  assert not run.notes


@pytest.mark.parametrize('name', ['eval.json', 'radii.csv'])
@pytest.mark.parametrize(
  'content', [None, '', '{"step": 3', 'a,b\n1,2\n', '[]']
)
def test_a_required_file_is_named_in_one_line(copy, name, content):
  (copy / name).unlink()
  if content is not None:
    (copy / name).write_text(content)
  with pytest.raises(errors.UserError, match=name) as caught:
    data.read_run(str(copy))
  assert '\n' not in str(caught.value)
  assert '--mode=eval' in str(caught.value)


def test_files_of_different_evaluations_are_refused(copy):
  change(copy / 'eval.json', examples=7)
  with pytest.raises(errors.UserError, match=r'has 120 examples, eval\.json 7'):
    data.read_run(str(copy))


OPTIONAL = (
  'config.json',
  'run.json',
  'metrics.jsonl',
  'gallery.npz',
  'attack.json',
)


@pytest.mark.parametrize('name', OPTIONAL)
def test_an_optional_file_may_be_missing_and_that_is_said(copy, name):
  (copy / name).unlink()
  run = data.read_run(str(copy))
  assert f'{name} is not in the workdir' in run.notes[name]
  assert set(run.notes) == {name}


@pytest.mark.parametrize('name', [*OPTIONAL, 'attack.npz'])
def test_an_optional_file_may_be_garbage(copy, name):
  (copy / name).write_text('{"x": ')
  run = data.read_run(str(copy))
  assert name == 'metrics.jsonl' or name in run.notes


def test_what_to_do_without_attacks_is_said(copy):
  (copy / 'attack.json').unlink()
  note = data.read_run(str(copy)).notes['attack.json']
  assert f'python -m lipnext_jax.attacks --workdir={copy}' in note


@pytest.mark.parametrize(
  ('field', 'value'), [('step', 39), ('split', 'validation')]
)
def test_stale_attacks_are_not_mixed_in(copy, field, value):
  change(copy / 'attack.json', **{field: value})
  run = data.read_run(str(copy))
  assert (run.attack, run.attacked) == (None, None)
  assert f'stale: it is of {field} {value}' in run.notes['attack.json']


def test_a_count_of_broken_certificates_survives_the_loss_of_the_arrays(copy):
  change(copy / 'attack.json', broken=2)
  (copy / 'attack.npz').unlink()
  run = data.read_run(str(copy))
  assert run.attack is not None
  assert run.attack['broken'] == 2
  assert run.attacked is None
  assert 'attack.npz' in run.notes


def spoil(path, **arrays):
  with np.load(path) as stored:
    np.savez(path, **{**stored, **arrays})


def test_a_gallery_of_another_evaluation_is_not_shown(copy):
  with np.load(copy / 'gallery.npz') as stored:
    radius = stored['radius'].copy()
  radius[3] = np.nextafter(radius[3], np.float32(np.inf))
  spoil(copy / 'gallery.npz', radius=radius)
  run = data.read_run(str(copy))
  assert run.gallery is None
  assert 'another evaluation' in run.notes['gallery.npz']


@pytest.mark.parametrize(
  'arrays',
  [
    {'id': np.arange(1, 121)},
    {'label': np.zeros(120, int)},
    {'shown_id': np.full(4, 999)},
    {'original': np.zeros((4, 2, 2, 1))},
  ],
  ids=lambda arrays: next(iter(arrays)),
)
def test_attack_arrays_that_do_not_fit_are_not_shown(copy, arrays):
  spoil(copy / 'attack.npz', **arrays)
  run = data.read_run(str(copy))
  assert run.attacked is None
  assert 'attack.npz cannot be shown' in run.notes['attack.npz']


def test_pickles_are_refused(copy):
  spoil(copy / 'gallery.npz', image=np.array([object()]))
  assert data.read_run(str(copy)).gallery is None


def test_a_line_cut_short_ends_the_metrics(copy):
  with open(copy / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 41, "train/loss": NaN}\n{"step": 42, "trai')
  steps, values = data.read_run(str(copy)).metrics['train/loss']
  assert steps[-1] == 41
  assert np.isnan(values[-1])


def test_the_headline_is_the_radius_trained_for_or_the_next_reported(copy):
  change(copy / 'config.json', **{'loss.epsilon': 0.9})
  assert data.read_run(str(copy)).epsilon == 1.0
  (copy / 'config.json').unlink()
  assert data.read_run(str(copy)).epsilon == 0.141176


def test_cifar_classes_have_names(copy):
  assert data.read_run(str(copy)).name_of(3) == 'class 3'
  change(copy / 'config.json', **{'dataset.name': 'cifar10'})
  run = data.read_run(str(copy))
  assert run.name_of(3) == 'cat'
  assert run.name_of(10) == 'class 10'
