import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax.checkpoint import manifest


def snapshot(workdir):
  return {
    path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()
  }


def test_the_last_and_the_best(workdir, make_state, capfd):
  before = snapshot(workdir)
  reader = checkpoint.CheckpointReader(str(workdir), config_hash='h')
  assert reader.list_steps() == [8, 32, 64]  # As numbers, not as names.
  for which, step in (('last', 64), ('best', 8)):
    assert reader.choose(which) == step
    restored = reader.restore(step, jax.eval_shape(lambda: make_state(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))
  assert snapshot(workdir) == before
  assert not capfd.readouterr().err


@pytest.mark.parametrize(
  ('which', 'step', 'name', 'chosen'),
  [
    ('last', 64, 'manifest.json', 32),
    ('best', 8, 'metrics', 32),
    ('best', 8, 'array_metadatas/process_0', 32),
    ('last', 8, 'metrics', 64),
  ],
)
def test_a_damaged_one_is_not_used_and_stays_where_it_is(
  workdir, flip, capsys, which, step, name, chosen
):
  flip(workdir, step, name)
  before = snapshot(workdir)
  assert checkpoint.CheckpointReader(str(workdir)).choose(which) == chosen
  said = f'checkpoint {step} is damaged' in capsys.readouterr().err
  assert said is ((which, step) != ('last', 8))  # Which is never looked at.
  assert snapshot(workdir) == before


def test_where_nothing_can_be_used_the_reader_says_so(workdir, flip, tmp_path):
  reader = checkpoint.CheckpointReader(str(workdir))
  for step in (8, 32):
    flip(workdir, step, 'manifest.json')
  with pytest.raises(
    errors.CheckpointError, match='no monitored checkpoint that is'
  ):
    reader.choose('best')  # 64 is whole, but was never monitored.
  flip(workdir, 64, 'manifest.json')
  with pytest.raises(
    errors.CheckpointError, match='no checkpoint that is not damaged'
  ):
    reader.choose('last')
  with pytest.raises(errors.ConfigError, match='holds no checkpoint'):
    checkpoint.CheckpointReader(str(tmp_path / 'new')).choose('last')
  assert os.listdir(tmp_path) == ['run']  # Nothing is made.


def test_one_that_its_run_removes_meanwhile_is_no_damage(
  workdir, make_state, capsys, monkeypatch
):
  find = manifest.find_damage

  def removing(directory, largest):
    if directory.endswith('/64'):
      shutil.rmtree(directory)
    return find(directory, largest)

  monkeypatch.setattr(manifest, 'find_damage', removing)
  reader = checkpoint.CheckpointReader(str(workdir))
  assert reader.choose('last') == 32
  assert not capsys.readouterr().err
  with pytest.raises(errors.CheckpointError, match='removed while'):
    reader.restore(64, make_state(0))


def test_another_config_and_other_arrays_are_named(workdir, make_state):
  reader = checkpoint.CheckpointReader(str(workdir), config_hash='other')
  with pytest.raises(errors.CheckpointError, match='another config'):
    reader.restore(8, make_state(0))
  with pytest.raises(errors.CheckpointError, match='makes no step'):
    reader.restore(8, {'w': make_state(0)['w']})
  wider = make_state(0) | {'w': jnp.zeros((256, 512))}
  difference = r'w float32\[256, 256\], this config makes w float32\[256, 512\]'
  with pytest.raises(errors.CheckpointError, match=difference):
    reader.restore(8, wider)
