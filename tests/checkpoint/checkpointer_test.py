import os
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax.checkpoint import manifest
from lipnext_jax.parallel import mesh as mesh_lib


def state_of(value):
  return {'w': jnp.full((256, 256), float(value)), 'step': jnp.int32(value)}


def abstract():
  return jax.eval_shape(lambda: state_of(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with the checkpoints 1 (the best), 3 and 4; 0 and 2 are gone."""
  folder = tmp_path_factory.mktemp('saved')
  checkpointer = checkpoint.Checkpointer(str(folder), config_hash='h')
  assert checkpointer.find_newest() is None
  for step, certified in enumerate([50.0, 90.0, 30.0, None, 20.0]):
    checkpointer.save(step, state_of(step), certified)
  assert checkpointer.close() == 4
  return folder


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def resume(workdir):
  """(step, state) that a run would go on with."""
  checkpointer = checkpoint.Checkpointer(str(workdir), config_hash='h')
  try:
    step = checkpointer.find_newest()
    return step, checkpointer.restore(step, abstract())
  finally:
    checkpointer.close()


def damage(workdir, step, name='manifest.json'):
  (path,) = (
    p for p in (workdir / f'checkpoints/{step}').rglob(name) if p.is_file()
  )
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def test_the_last_two_and_the_best_are_kept_and_nothing_else(workdir):
  """Wherever they are moved; the best of the run before is known again."""
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['1', '3', '4']
  step, state = resume(workdir)
  assert step == state['step'] == 4
  np.testing.assert_array_equal(state['w'], 4.0)
  again = checkpoint.Checkpointer(str(workdir))
  again.save(5, state_of(5), 80.0)
  again.close()
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['1', '4', '5']
  assert os.listdir(workdir) == ['checkpoints']


def test_a_saved_state_may_be_donated_at_once(tmp_path):
  """Saving is asynchronous: what later steps write must not leak into it."""
  advance = jax.jit(
    lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0
  )
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  state = state_of(0)
  for step in range(4):
    checkpointer.save(step, state)
    for _ in range(5):
      state = advance(state)
  checkpointer.wait()
  restored = checkpointer.restore(3, abstract())
  np.testing.assert_array_equal(restored['w'], 15.0)
  checkpointer.close()


def test_restoring_lays_out_on_another_mesh(tmp_path):
  def sharded(data, fsdp, spec):
    mesh = mesh_lib.make_mesh(
      ml_collections.ConfigDict({'data': data, 'fsdp': fsdp})
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  rows = sharded(1, 8, ('fsdp',))
  checkpointer.save(1, {'w': jax.device_put(values, rows)})
  checkpointer.wait()
  columns = sharded(4, 2, (None, 'fsdp'))
  target = {'w': jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns)}
  restored = checkpointer.restore(1, target)
  checkpointer.close()
  assert restored['w'].sharding == columns
  np.testing.assert_array_equal(restored['w'], values)


def test_an_unfinished_save_is_not_a_checkpoint(workdir):
  torn = workdir / 'checkpoints' / '5.orbax-checkpoint-tmp-0'
  torn.mkdir()
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  assert resume(workdir)[0] == 4
  assert not torn.exists()


def test_a_save_that_fails_is_one_line(tmp_path, monkeypatch):
  """Orbax writes in a thread: the line comes with what is called next."""
  checkpointer = checkpoint.Checkpointer(str(tmp_path))

  def full(*args, **options):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(manifest, 'write', full)
  checkpointer.save(1, state_of(1))
  with pytest.raises(
    errors.CheckpointError,
    match=r'could not be written \(No space left on device\); older ones are',
  ):
    checkpointer.wait()


# ── Damage ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
  ('broken', 'newest'),
  [
    ([(4, '_METADATA')], 3),
    ([(4, 'metrics')], 3),
    ([(3, 'metrics')], 4),  # Orbax reads the metrics of all of them.
    ([(4, 'manifest.json'), (3, '_sharding')], 1),
  ],
)
def test_damaged_ones_are_set_aside_and_the_one_before_is_used(
  workdir, capfd, broken, newest
):
  for step, name in broken:
    damage(workdir, step, name)
  (workdir / 'damaged' / '4-0').mkdir(parents=True)  # From another time.
  step, state = resume(workdir)
  assert step == newest
  np.testing.assert_array_equal(state['w'], float(newest))
  said = capfd.readouterr().err
  aside = {f'{step}-{int(step == 4)}' for step, _ in broken}
  assert set(os.listdir(workdir / 'damaged')) == {'4-0', *aside}
  for step, name in broken:
    assert f'checkpoint {step} is damaged (' in said
    assert name in said


def test_damaged_ones_stay_on_their_own_file_system(workdir, tmp_path):
  """Where the folder of checkpoints is a link, a rename would not get out."""
  damage(workdir, 4)
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'checkpoints').symlink_to(workdir / 'checkpoints')
  assert resume(other)[0] == 3
  assert os.listdir(workdir / 'damaged') == ['4-0']
  assert os.listdir(other) == ['checkpoints']


def test_when_all_are_damaged_nothing_starts_again(workdir):
  for step in (1, 3, 4):
    damage(workdir, step)
  for _ in range(2):  # Nor at the next start: they are still to be looked at.
    with pytest.raises(errors.CheckpointError, match='holds only damaged'):
      resume(workdir)
  assert len(os.listdir(workdir / 'damaged')) == 3
