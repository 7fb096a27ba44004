import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import checkpoint_reader
from lipnext_jax import errors
from lipnext_jax import manifest


def state_of(value):
  return {'w': jnp.full((256, 256), float(value)), 'step': jnp.int32(value)}


def abstract():
  return jax.eval_shape(lambda: state_of(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Three checkpoints: 2 is the best; nobody monitored 4."""
  folder = tmp_path_factory.mktemp('saved')
  checkpointer = checkpoint.Checkpointer(str(folder), config_hash='h')
  for step, certified in ((2, 90.0), (3, 50.0), (4, None)):
    checkpointer.save(step, state_of(step), certified)
  checkpointer.close()
  return folder


@pytest.fixture
def workdir(saved, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint_reader, '_AGAIN', 0.0)
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def snapshot(workdir):
  return {
    path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()
  }


def flip(workdir, step, name):
  found = (workdir / 'checkpoints' / str(step)).rglob(name)
  (path,) = (path for path in found if path.is_file())
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def test_the_last_and_the_best(workdir):
  reader = checkpoint_reader.CheckpointReader(str(workdir), config_hash='h')
  for which, step in (('last', 4), ('best', 2)):
    assert reader.choose(which) == step
    restored = reader.restore(step, abstract())
    np.testing.assert_array_equal(restored['w'], float(step))


def test_the_last_is_the_largest_number_whatever_the_folder_says(
  tmp_path, monkeypatch
):
  """Neither the order of a listing nor that of a set of numbers is theirs."""
  monkeypatch.setattr(manifest, 'find_damage', lambda *_: None)
  steps = (1, 32, 64)  # No set of these is in order.
  assert list(set(steps)) != sorted(steps)
  for step in steps:
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  assert checkpoint.list_steps(str(tmp_path / 'checkpoints')) == sorted(steps)
  reader = checkpoint_reader.CheckpointReader(str(tmp_path))
  assert reader.choose('last') == 64
  (tmp_path / 'checkpoints' / '64').rmdir()
  assert reader.choose('last') == 32


@pytest.mark.parametrize(
  ('which', 'step', 'name', 'chosen'),
  [
    ('last', 4, 'manifest.json', 3),
    ('last', 4, 'metrics', 3),
    ('last', 4, '_METADATA', 3),
    ('best', 2, 'metrics', 3),
    ('best', 2, '_sharding', 3),
    ('best', 4, 'metrics', 2),
    ('last', 2, 'metrics', 4),
  ],
)
def test_a_damaged_one_is_not_used_and_stays_where_it_is(
  workdir, capsys, which, step, name, chosen
):
  flip(workdir, step, name)
  before = snapshot(workdir)
  reader = checkpoint_reader.CheckpointReader(str(workdir))
  assert reader.choose(which) == chosen
  said = f'checkpoint {step} is damaged' in capsys.readouterr().err
  assert said is ((which, step) != ('last', 2))  # Which is never looked at.
  assert snapshot(workdir) == before


def test_when_nothing_is_whole_the_reader_says_so(workdir):
  for step in (2, 3, 4):
    flip(workdir, step, 'manifest.json')
  before = snapshot(workdir)
  reader = checkpoint_reader.CheckpointReader(str(workdir))
  for which in ('last', 'best'):
    with pytest.raises(errors.CheckpointError, match=r'only damaged.*\(4: its'):
      reader.choose(which)
  assert snapshot(workdir) == before


def test_where_there_is_nothing_nothing_is_made(tmp_path):
  reader = checkpoint_reader.CheckpointReader(str(tmp_path / 'new'))
  for which in ('last', 'best'):
    with pytest.raises(errors.ConfigError, match=rf'to evaluate \({which}\)'):
      reader.choose(which)
  assert not os.listdir(tmp_path)


def test_the_best_needs_monitoring(workdir):
  for step in (2, 3):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  reader = checkpoint_reader.CheckpointReader(str(workdir))
  with pytest.raises(errors.ConfigError, match=r'to evaluate \(best\)'):
    reader.choose('best')
  assert reader.choose('last') == 4


def test_one_that_its_run_removes_meanwhile_is_no_damage(
  workdir, capsys, monkeypatch
):
  find, gone = manifest.find_damage, workdir / 'checkpoints' / '4'

  def removing(directory, largest=None):
    found = find(directory, largest)
    if directory.endswith('/4') and gone.exists():
      (gone / 'manifest.json').unlink()  # Half removed; then all of it.
      found = find(directory, largest)
      shutil.rmtree(gone)
    return found

  monkeypatch.setattr(manifest, 'find_damage', removing)
  reader = checkpoint_reader.CheckpointReader(str(workdir))
  assert reader.choose('last') == 3
  assert not capsys.readouterr().err
  shutil.rmtree(workdir / 'checkpoints' / '3')
  with pytest.raises(errors.CheckpointError, match='removed while'):
    reader.restore(3, abstract())


def test_a_passing_error_of_the_disk_is_no_damage(workdir, monkeypatch):
  find, calls = manifest.find_damage, []

  def failing(directory, largest=None):
    calls.append(directory)
    return 'x cannot be read' if len(calls) == 1 else find(directory, largest)

  monkeypatch.setattr(manifest, 'find_damage', failing)
  assert checkpoint_reader.CheckpointReader(str(workdir)).choose('last') == 4
  assert len(calls) == 2


def test_another_config_and_other_arrays_are_refused(workdir):
  reader = checkpoint_reader.CheckpointReader(str(workdir), config_hash='other')
  with pytest.raises(errors.CheckpointError, match='another config'):
    reader.restore(3, abstract())
  with pytest.raises(errors.CheckpointError, match='makes no step'):
    reader.restore(3, {'w': jnp.zeros((256, 256))})
