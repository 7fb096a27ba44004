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
  for content in (b'{"x": ', b'', b'\xff\xfe', None):
    (copy / name).unlink()
    if content is not None:
      (copy / name).write_bytes(content)
    run = read(copy)
    assert getattr(run, OPTIONAL[name]) in ({}, [{}])
    empty = name == 'metrics.jsonl' and content is not None
    assert empty or name in run.notes


def test_files_of_earlier_versions_are_shown_as_far_as_they_go(copy):
  attack = json.loads((copy / 'attack.json').read_text())
  del attack['runs']
  (copy / 'attack.json').write_text(json.dumps(attack))
  run = read(copy)
  assert not run.attack
  assert not run.attacked
  assert 'it lacks runs' in run.notes['attack.json']
  # The first one once ended in a traceback.
  for text in ('[{}]', '[{"python": "3.11", "data": {}}]'):
    (copy / 'run.json').write_text(text)
    run = read(copy)
  assert '<td>3.11</td>' in page.build_page(run)


def test_files_that_make_no_page_end_in_a_line(copy):
  before = (copy / 'report.html').read_text()
  summary = json.loads((copy / 'eval.json').read_text())
  for content in (summary | {'epsilons': []}, {'lipschitz_bounds': {}}):
    (copy / 'eval.json').write_text(json.dumps(content))
    message = f'^{copy}: .* do not make a page .*: .*; .* --mode=eval'
    with pytest.raises(errors.UserError, match=message):
      page.write_page(str(copy))
    assert (copy / 'report.html').read_text() == before


@pytest.mark.parametrize(
  ('name', 'arrays'),
  [
    ('gallery.npz', {'radius': np.ones(24, np.float32)}),
    ('gallery.npz', {'image': np.array([object()])}),  # A pickle: refused.
    ('attack.npz', {'id': np.arange(1, 121)}),
    ('attack.npz', {'label': np.zeros(120, int)}),
  ],
)
def test_arrays_of_other_evaluations_are_not_shown(copy, name, arrays):
  with np.load(copy / name) as stored:
    np.savez(copy / name, **{**stored, **arrays})
  run = read(copy)
  assert not getattr(run, OPTIONAL[name])
  assert name in run.notes


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
    read(copy)


def test_the_headline_is_the_radius_trained_for_or_the_next_reported(copy):
  assert read(copy).epsilon == 0.25
  change(copy / 'config.json', **{'loss.epsilon': 0.9})
  assert read(copy).epsilon == 1.0
  (copy / 'config.json').unlink()
  assert read(copy).epsilon == 36 / 255
