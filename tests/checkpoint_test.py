import json
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors
from lipnext_jax.parallel import mesh as mesh_lib


def state_of(value):
  return {'w': jnp.full((256, 256), float(value)), 'step': jnp.int32(value)}


def abstract():
  return jax.eval_shape(lambda: state_of(0))


def test_last_and_best_are_kept_and_nothing_else(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  for step, certified in enumerate([50.0, 90.0, 30.0, None, 20.0]):
    checkpointer.save(step, state_of(step), certified)
  checkpointer.close()
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '4']
  again = checkpoint.Checkpointer(str(tmp_path), create=False)
  assert again.choose('last') == 4
  assert again.choose('best') == 1
  assert again.restore(1, abstract())['step'] == 1
  again.close()


def test_the_best_needs_monitoring(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  checkpointer.save(3, state_of(3))
  with pytest.raises(errors.ConfigError, match='best'):
    checkpointer.choose('best')
  assert checkpointer.choose('last') == 3
  checkpointer.close()


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
  again = checkpoint.Checkpointer(str(tmp_path), create=False)
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


def test_nothing_is_created_where_nothing_may_be(tmp_path):
  with pytest.raises(errors.ConfigError, match='holds no checkpoint'):
    checkpoint.Checkpointer(str(tmp_path / 'new'), create=False)
  assert not os.listdir(tmp_path)


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  checkpointer.save(1, state_of(1))
  checkpointer.close()
  torn = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp-0'
  torn.mkdir()
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  again = checkpoint.Checkpointer(str(tmp_path))
  assert again.choose(None) == 1
  again.close()


def test_a_workdir_of_the_same_config_is_accepted(tmp_path, tiny_config):
  workdir = str(tmp_path / 'run')
  checkpoint.check_workdir(workdir, tiny_config)  # Does not exist: fine.
  assert not os.path.exists(workdir)
  checkpoint.write_config(workdir, tiny_config)
  tiny_config.log.every = '7 steps'  # Free to change.
  tiny_config.mesh.fsdp = 2
  checkpoint.check_workdir(workdir, tiny_config)


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
