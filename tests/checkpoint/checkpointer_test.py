import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax.checkpoint import manifest


def check_restored(reader, step, make_state):
  restored = reader.restore(step, jax.eval_shape(lambda: make_state(0)))
  jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))


def flip(workdir, step, name='*'):
  """Flips a bit of a checkpoint's largest file of a name."""
  found = (workdir / 'checkpoints' / str(step)).rglob(name)
  path = max(found, key=lambda path: path.is_file() * path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def snapshot(workdir):
  return {
    path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()
  }


@pytest.fixture
def resume(make_state):
  """A function that restores, compares and names the newest state."""

  def find_and_restore(workdir):
    checkpointer = checkpoint.Checkpointer(str(workdir), config_hash='h')
    step = checkpointer.find_newest()
    checkpointer.close()
    check_restored(checkpointer, step, make_state)
    return step

  return find_and_restore


def test_where_nothing_can_be_used_readers_and_writers_say_so(
  workdir, resume, tmp_path
):
  reader = checkpoint.CheckpointReader(str(workdir))
  for step in (8, 32):
    flip(workdir, step, 'manifest.json')
  with pytest.raises(errors.CheckpointError, match='no monitored checkpoint'):
    reader.choose('best')  # 64 is whole, but was never monitored.
  flip(workdir, 64, 'manifest.json')
  with pytest.raises(errors.CheckpointError, match='holds no checkpoint that'):
    reader.choose('last')
  for _ in range(2):  # Nor at the next start: they are still to be looked at.
    with pytest.raises(errors.CheckpointError, match='holds only damaged'):
      resume(workdir)
  assert len(os.listdir(workdir / 'damaged')) == 3
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
  for config_hash, change, problem in (
    ('other', {}, 'another config'),
    ('h', {'step': None}, 'step is .* absent with'),
    ('h', {'w': np.zeros((2, 512))}, r'w is float32\[256, 256\] in .*512\]'),
  ):
    reader = checkpoint.CheckpointReader(str(workdir), config_hash=config_hash)
    with pytest.raises(errors.CheckpointError, match=problem):
      reader.restore(8, make_state(0) | change)


def test_the_last_two_and_the_best_are_kept_and_nothing_else(
  workdir, make_state, resume
):
  """A resumed run knows the best checkpoint, and removes unfinished saves."""
  torn = workdir / 'checkpoints' / '65.orbax-checkpoint-tmp-0'
  torn.mkdir()
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  assert resume(workdir) == 64
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['32', '64', '8']
  again = checkpoint.Checkpointer(str(workdir))
  again.save(65, make_state(65), 80.0)
  again.close()
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['64', '65', '8']


def test_a_saved_state_may_be_donated_at_once(tmp_path):
  """Saving is asynchronous: later steps must not change what is saved."""
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  state = jnp.zeros((2048, 2048))
  for step in range(4):
    checkpointer.save(step, {'w': state})
    for _ in range(5):
      state = advance(state)
  checkpointer.close()
  restored = checkpointer.restore(3, {'w': jax.eval_shape(lambda: state)})
  np.testing.assert_array_equal(restored['w'], 15.0)


@pytest.mark.parametrize(
  ('broken', 'newest', 'best'),
  [
    ([], 64, 8),
    ([(64, 'd/*')], 32, 8),  # An array.
    ([(64, 'metrics')], 32, 8),
    ([(32, 'metrics')], 64, 8),  # Orbax reads the metrics of all of them.
    ([(8, 'array_metadatas/process_0')], 64, 32),
    ([(64, 'manifest.json'), (32, '_sharding')], 8, 8),
  ],
)
def test_damaged_ones_are_not_used_and_only_the_writer_sets_them_aside(
  workdir, make_state, resume, capfd, broken, newest, best
):
  for step, name in broken:
    flip(workdir, step, name)
  damaged = workdir / 'damaged'
  (damaged / '64-0').mkdir(parents=True)  # From another time.
  before = snapshot(workdir)
  reader = checkpoint.CheckpointReader(str(workdir), config_hash='h')
  assert reader.list_steps() == [8, 32, 64]  # As numbers, not as names.
  for which, step in (('last', newest), ('best', best)):
    assert reader.choose(which) == step
    check_restored(reader, step, make_state)
  assert snapshot(workdir) == before
  read = capfd.readouterr().err
  assert bool(read) == bool(broken)
  assert resume(workdir) == newest
  written = capfd.readouterr().err
  aside = {f'{step}-{int(step == 64)}' for step, _ in broken}
  assert set(os.listdir(damaged)) == {'64-0', *aside}
  for step, name in broken:
    for said in (read, written):
      assert f'checkpoint {step} is damaged (' in said
      assert name.rstrip('*') in said


def test_damaged_ones_stay_on_their_own_file_system(workdir, resume, tmp_path):
  """The folder of checkpoints may be a link, and a rename stays on its disk."""
  flip(workdir, 64)
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'checkpoints').symlink_to(workdir / 'checkpoints')
  assert resume(other) == 32
  assert os.listdir(workdir / 'damaged') == ['64-0']
  assert os.listdir(other) == ['checkpoints']
