import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax import manifest
from lipnext_jax.parallel import mesh as mesh_lib


def state_of(value):
  return {'w': jnp.full((256, 256), float(value)), 'step': jnp.int32(value)}


def abstract():
  return jax.eval_shape(lambda: state_of(0))


def test_the_last_two_and_the_best_are_kept_and_nothing_else(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  for step, certified in enumerate([50.0, 90.0, 30.0, None, 20.0]):
    checkpointer.save(step, state_of(step), certified)
  checkpointer.close()
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '3', '4']
  again = checkpoint.Checkpointer(str(tmp_path))
  assert again.choose() == 4
  assert again.restore(1, abstract())['step'] == 1
  again.close()


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
  checkpointer.close()
  again = checkpoint.Checkpointer(str(tmp_path))
  restored = again.restore(3, abstract())
  np.testing.assert_array_equal(restored['w'], 15.0)
  again.close()


def test_restoring_lays_out_on_another_mesh(tmp_path):
  def sharded(data, fsdp, spec):
    mesh = mesh_lib.make_mesh(
      ml_collections.ConfigDict({'data': data, 'fsdp': fsdp})
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  rows = sharded(1, 8, ('fsdp',))
  checkpointer.save(0, {'w': jax.device_put(values, rows)})
  columns = sharded(4, 2, (None, 'fsdp'))
  target = {'w': jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=columns)}
  restored = checkpointer.restore(0, target)
  checkpointer.close()
  assert restored['w'].sharding == columns
  np.testing.assert_array_equal(restored['w'], values)


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  checkpointer.save(1, state_of(1))
  checkpointer.close()
  torn = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp-0'
  torn.mkdir()
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  again = checkpoint.Checkpointer(str(tmp_path))
  assert again.choose() == 1
  again.close()


# ── Damage ───────────────────────────────────────────────────────────────────


def saved(tmp_path, steps=(1, 2, 3)):
  checkpointer = checkpoint.Checkpointer(str(tmp_path), config_hash='h')
  for step in steps:
    checkpointer.save(step, state_of(step), float(step))
  checkpointer.close()


def choose_and_restore(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path), config_hash='h')
  try:
    step = checkpointer.choose()
    return step, checkpointer.restore(step, abstract())
  finally:
    checkpointer.close()


def files_of(tmp_path, step):
  found = (tmp_path / 'checkpoints' / str(step)).rglob('*')
  return sorted(path for path in found if path.is_file())


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[at % len(data)] ^= 1 << (at % 8)
  path.write_bytes(bytes(data))


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
  """A workdir with three checkpoints, to be copied."""
  folder = tmp_path_factory.mktemp('saved')
  saved(folder)
  return folder


def damages(path):
  """(name, function) for ways in which a file goes bad."""
  size = path.stat().st_size
  yield 'removed', path.unlink
  yield 'emptied', lambda: path.write_bytes(b'')
  if size > 1:
    yield 'truncated', lambda: path.write_bytes(path.read_bytes()[: size // 2])
    for at in (0, size // 3, size - 1):
      yield f'bit {at}', lambda at=at: flip(path, at)
  yield 'extended', lambda: path.write_bytes(path.read_bytes() + b'x')


def test_every_damage_to_every_file_is_found_and_the_one_before_it_used(
  checkpoints, tmp_path, capfd
):
  """Each way, each file; benchmarks/corruption.py draws them at random."""
  tried = 0
  names = [p.relative_to(checkpoints) for p in files_of(checkpoints, 3)]
  for name in names:
    for kind, _ in list(damages(checkpoints / name)):
      workdir = tmp_path / str(tried)
      shutil.copytree(checkpoints, workdir)
      dict(damages(workdir / name))[kind]()
      directory = workdir / 'checkpoints' / '3'
      assert manifest.find_damage(str(directory)), (name, kind)
      shutil.rmtree(workdir)
      tried += 1
  assert tried > 60
  # One of each kind through the whole of it: Orbax is slow to start.
  array = max(names, key=lambda name: (checkpoints / name).stat().st_size)
  metrics = next(name for name in names if name.name == 'metrics')
  for name, kind in ((array, 'bit 0'), (metrics, 'emptied')):
    workdir = tmp_path / f'whole {name.name}'
    shutil.copytree(checkpoints, workdir)
    dict(damages(workdir / name))[kind]()
    step, state = choose_and_restore(workdir)
    assert step == 2
    np.testing.assert_array_equal(state['w'], 2.0)
    assert os.listdir(workdir / 'damaged') == ['3-0']
    message = capfd.readouterr().err
    assert 'checkpoint 3 is damaged' in message
    assert str(name.relative_to('checkpoints/3')) in message


def test_an_undamaged_checkpoint_is_left_alone(checkpoints, tmp_path):
  """And may have been moved or copied elsewhere."""
  workdir = tmp_path / 'elsewhere'
  shutil.copytree(checkpoints, workdir)
  step, state = choose_and_restore(workdir)
  assert step == 3
  np.testing.assert_array_equal(state['w'], 3.0)
  assert not (workdir / 'damaged').exists()


def test_what_was_set_aside_before_is_not_in_the_way(checkpoints, tmp_path):
  workdir = tmp_path / 'again'
  shutil.copytree(checkpoints, workdir)
  (workdir / 'damaged' / '3-0').mkdir(parents=True)
  (workdir / 'damaged' / '3-0' / 'x').touch()
  (workdir / 'damaged' / '3-2').mkdir()
  (workdir / 'checkpoints' / '3' / 'manifest.json').unlink()
  assert choose_and_restore(workdir)[0] == 2
  assert sorted(os.listdir(workdir / 'damaged')) == ['3-0', '3-1', '3-2']


def test_damaged_ones_stay_on_their_own_file_system(checkpoints, tmp_path):
  """Where the folder of checkpoints is a link, a rename would not get out."""
  workdir, elsewhere = tmp_path / 'run', tmp_path / 'elsewhere'
  shutil.copytree(checkpoints, elsewhere)
  workdir.mkdir()
  (workdir / 'checkpoints').symlink_to(elsewhere / 'checkpoints')
  (workdir / 'checkpoints' / '3' / 'manifest.json').unlink()
  assert choose_and_restore(workdir)[0] == 2
  assert os.listdir(elsewhere / 'damaged') == ['3-0']
  assert os.listdir(workdir) == ['checkpoints']


def test_when_all_are_damaged_nothing_starts_again(checkpoints, tmp_path):
  workdir = tmp_path / 'all'
  shutil.copytree(checkpoints, workdir)
  for step in (2, 3):
    (workdir / 'checkpoints' / str(step) / 'manifest.json').unlink()
  with pytest.raises(errors.CheckpointError, match='holds only damaged'):
    choose_and_restore(workdir)
  # Nor at the next start: what was set aside is still there to be looked at.
  with pytest.raises(errors.CheckpointError, match='holds only damaged'):
    choose_and_restore(workdir)


def test_another_architecture_is_named_by_its_first_difference(
  checkpoints, tmp_path
):
  workdir = str(tmp_path / 'copy')
  shutil.copytree(checkpoints, workdir)
  checkpointer = checkpoint.Checkpointer(workdir, config_hash='other')
  wider = {'step': jnp.int32(0), 'w': jnp.zeros((256, 512))}
  with pytest.raises(
    errors.CheckpointError,
    match=r'w float32\[256, 256\], this config makes w float32\[256, 512\]',
  ):
    checkpointer.restore(3, wider)
  with pytest.raises(errors.CheckpointError, match='makes no step'):
    checkpointer.restore(3, {'w': jnp.zeros((256, 256))})
  with pytest.raises(errors.CheckpointError, match='another config'):
    checkpointer.restore(3, abstract())
  checkpointer.close()


def test_a_workdir_of_the_same_config_is_accepted(tmp_path, tiny_config):
  workdir = str(tmp_path / 'run')
  checkpoint.check_workdir(workdir, tiny_config)  # Does not exist: fine.
  assert not os.path.exists(workdir)
  checkpoint.write_config(workdir, tiny_config)
  tiny_config.log.every = '7 steps'  # Free to change.
  tiny_config.mesh.fsdp = 2
  checkpoint.check_workdir(workdir, tiny_config)


def test_a_field_that_is_newer_than_the_run_had_its_default(
  tmp_path, tiny_config
):
  checkpoint.write_config(str(tmp_path), tiny_config)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  del fields['augment.flip']
  path.write_text(json.dumps(fields))
  checkpoint.check_workdir(str(tmp_path), tiny_config)
  tiny_config.augment.flip = True
  with pytest.raises(errors.ConfigError, match='differs from False'):
    checkpoint.check_workdir(str(tmp_path), tiny_config)


def test_the_hash_of_a_config_is_of_what_decides_the_states(tiny_config):
  own = checkpoint.hash_config(tiny_config)
  tiny_config.log.every = '7 steps'
  assert checkpoint.hash_config(tiny_config) == own
  tiny_config.model.beta = 0.25
  assert checkpoint.hash_config(tiny_config) != own


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model.width', 32),
    ('seed', 1),
    ('duration', '9 steps'),
    ('batch_size', 8),
  ],
)
def test_a_workdir_of_another_config_is_refused(
  tmp_path, tiny_config, field, value
):
  workdir = str(tmp_path)
  checkpoint.write_config(workdir, tiny_config)
  before = (tmp_path / 'config.json').read_bytes()
  tiny_config.update_from_flattened_dict({field: value})
  with pytest.raises(errors.ConfigError, match='differs from') as info:
    checkpoint.check_workdir(workdir, tiny_config)
  assert info.value.field == field
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_workdir_that_is_a_file_or_unreadable_is_refused(
  tmp_path, tiny_config
):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(errors.ConfigError, match='is a file'):
    checkpoint.check_workdir(str(tmp_path / 'file'), tiny_config)
  (tmp_path / 'config.json').write_text('{"half')
  with pytest.raises(errors.ConfigError, match='unreadable'):
    checkpoint.check_workdir(str(tmp_path), tiny_config)


def test_the_written_config_is_complete(tmp_path, tiny_config):
  checkpoint.write_config(str(tmp_path), tiny_config)
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['model.depth'] == 2
  assert 'log.every' in stored


def test_an_address_is_no_workdir(tiny_config):
  with pytest.raises(errors.ConfigError, match=r"'gs://b/run' is an address"):
    checkpoint.check_workdir('gs://b/run', tiny_config)
