import json

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.report import page
from lipnext_jax.report import workdir as workdir_lib

OPTIONAL = {
  'config.json': 'config',
  'run.json': 'starts',
  'metrics.jsonl': 'metrics',
  'inputs.npz': 'inputs',
  'gallery.npz': 'gallery',
  'attack.json': 'attack',
  'attack.npz': 'attacked',
}


def read(copy):
  """Reads a workdir, and checks that its page can be built."""
  run = workdir_lib.read_run(str(copy))
  assert '</html>' in page.build_page(run)
  return run


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_everything_that_is_there_is_read(copy):
  with open(copy / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 41, "train/loss": NaN}\n{"step": 42, "trai')
  run = read(copy)
  assert all(len(getattr(run, field)) for field in OPTIONAL.values())
  assert not run.notes
  steps, values = run.metrics['train/loss']
  assert (steps == np.arange(1, 42)).all()
  assert np.isnan(values[-1])


@pytest.mark.parametrize('name', ['eval.json', 'radii.csv'])
def test_a_required_file_is_named_in_one_line(copy, name):
  for content in ('', '{"step": 3', 'a,b\n1,2\n', '[]', None):
    (copy / name).unlink()
    if content is not None:
      (copy / name).write_text(content)
    with pytest.raises(errors.UserError, match=f'{name} .*--mode=eval'):
      workdir_lib.read_run(str(copy))


@pytest.mark.parametrize('name', OPTIONAL)
def test_an_optional_file_may_be_missing_or_garbage(copy, name):
  for content in (b'{"x": ', b'[3]', b'\xff\xfe', b'7', None):
    (copy / name).unlink()
    if content is not None:
      (copy / name).write_bytes(content)
    run = read(copy)
    assert not getattr(run, OPTIONAL[name])
    # Metrics end where they are damaged.
    assert name in run.notes or (name == 'metrics.jsonl' and content)


@pytest.mark.parametrize(
  'fields',
  [
    {'epsilons': []},
    {'epsilons': [0.25, 'x']},
    {'epsilons': [float('inf')]},
    {'lipschitz_bounds': {'Q': []}},
    {'lipschitz_bounds': {'Q': 1.0}},
    {'lipschitz_bounds': {'Q': [None]}},
    {'logit_error': 'x'},
    {'clean': 10**400},
  ],
)
def test_an_evaluation_that_no_page_can_show_is_damaged(copy, fields):
  change(copy / 'eval.json', **fields)
  (field,) = fields
  with pytest.raises(errors.UserError, match=f'it .*{field}.*--mode=eval'):
    workdir_lib.read_run(str(copy))


@pytest.mark.parametrize(
  ('name', 'field', 'value'),
  [
    ('run.json', 'data', {}),  # `[{}]` once ended in a traceback.
    ('run.json', 'data', {'class_names': [3]}),
    ('run.json', 'commit', None),
    ('attack.json', 'runs', [3]),
    ('attack.json', 'attacks', {'pgd': {'runs': 1}}),
    ('attack.json', 'epsilons', {'0.25': 68.5}),
    ('attack.json', 'examples', 10**400),
    ('config.json', 'loss.epsilon', {}),
  ],
)
def test_a_record_that_no_page_can_show_is_noted(copy, name, field, value):
  record = json.loads((copy / name).read_text())
  entry = record[-1] if name == 'run.json' else record
  entry[field] = value
  (copy / name).write_text(json.dumps(record))
  run = read(copy)
  assert not getattr(run, OPTIONAL[name])
  assert f'it lacks a valid {field}' in run.notes[name]


@pytest.mark.parametrize(
  ('name', 'arrays'),
  [
    ('inputs.npz', {'training': np.zeros((4, 8, 8, 1), 'U1')}),
    ('inputs.npz', {'evaluation': np.zeros((4, 0, 8, 1))}),
    ('gallery.npz', {'radius': np.ones(24, np.float32)}),
    ('gallery.npz', {'image': np.zeros((24, 8, 8))}),
    ('gallery.npz', {'image': np.array([object()])}),  # A pickle: refused.
    ('attack.npz', {'id': np.arange(1, 121)}),
    ('attack.npz', {'label': np.zeros(120, int)}),
    ('attack.npz', {'distance': np.ones(60)}),
    ('attack.npz', {'shown_id': np.arange(200, 204)}),
  ],
)
def test_arrays_that_do_not_fit_are_not_shown(copy, name, arrays):
  with np.load(copy / name) as stored:
    np.savez(copy / name, **{**stored, **arrays})
  run = read(copy)
  assert not getattr(run, OPTIONAL[name])
  assert name in run.notes


def test_metrics_beyond_what_a_chart_can_show_are_left_out(copy):
  with open(copy / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 41, "train/loss": 1e308, "train/epsilon": 5e-324}\n')
  assert read(copy).metrics['train/loss'][1][-1] == 1e308
  with open(copy / 'metrics.jsonl', 'a') as file:
    file.write(f'{{"step": 1{400 * "0"}, "train/loss": 1}}\n')
  assert not read(copy).metrics


def test_files_of_different_evaluations_are_not_mixed(copy):
  for field, value in (('step', 39), ('split', 'train')):
    change(copy / 'attack.json', **{field: value})
    run = read(copy)
    assert not run.attack
    assert not run.attacked
    assert f'of {field} {value}' in run.notes['attack.json']
    change(copy / 'attack.json', step=40)
  change(copy / 'eval.json', examples=7)
  with pytest.raises(errors.UserError, match=r'has 120 examples, eval\.json 7'):
    workdir_lib.read_run(str(copy))


def test_the_headline_is_the_radius_trained_for_or_the_next_reported(copy):
  assert read(copy).epsilon == 0.25
  change(copy / 'config.json', **{'loss.epsilon': 0.9})
  assert read(copy).epsilon == 1.0
  (copy / 'config.json').unlink()
  assert read(copy).epsilon == 36 / 255
