import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors


@pytest.fixture
def resume(make_state):
  """A function that restores, compares and names the newest state."""

  def find_and_restore(workdir):
    checkpointer = checkpoint.Checkpointer(str(workdir), config_hash='h')
    step = checkpointer.find_newest()
    checkpointer.close()
    restored = checkpointer.restore(step, jax.eval_shape(lambda: make_state(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))
    return step

  return find_and_restore


def test_the_last_two_and_the_best_are_kept_and_nothing_else(
  workdir, make_state, resume
):
  """A resumed run knows the best checkpoint."""
  assert sorted(os.listdir(workdir / 'checkpoints')) == ['32', '64', '8']
  assert resume(workdir) == 64
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


def test_an_unfinished_save_is_not_a_checkpoint(workdir, resume):
  torn = workdir / 'checkpoints' / '65.orbax-checkpoint-tmp-0'
  torn.mkdir()
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  assert resume(workdir) == 64
  assert not torn.exists()


@pytest.mark.parametrize(
  ('broken', 'newest'),
  [
    ([(64, 'd/*')], 32),  # An array.
    ([(64, 'metrics')], 32),
    ([(32, 'metrics')], 64),  # Orbax reads the metrics of all of them.
    ([(64, 'manifest.json'), (32, '_sharding')], 8),
  ],
)
def test_damaged_ones_are_set_aside_and_the_one_before_is_used(
  workdir, resume, flip, capfd, broken, newest
):
  for step, name in broken:
    flip(workdir, step, name)
  damaged = workdir / 'damaged'
  (damaged / '64-0').mkdir(parents=True)  # From another time.
  assert resume(workdir) == newest
  said = capfd.readouterr().err
  aside = {f'{step}-{int(step == 64)}' for step, _ in broken}
  assert set(os.listdir(damaged)) == {'64-0', *aside}
  for step, name in broken:
    assert f'checkpoint {step} is damaged (' in said
    assert name.rstrip('*') in said


def test_damaged_ones_stay_on_their_own_file_system(
  workdir, resume, flip, tmp_path
):
  """The folder of checkpoints may be a link, and a rename stays on its disk."""
  flip(workdir, 64)
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'checkpoints').symlink_to(workdir / 'checkpoints')
  assert resume(other) == 32
  assert os.listdir(workdir / 'damaged') == ['64-0']
  assert os.listdir(other) == ['checkpoints']


def test_when_all_are_damaged_nothing_starts_again(workdir, resume, flip):
  for step in (8, 32, 64):
    flip(workdir, step)
  for _ in range(2):  # Nor at the next start: they are still to be looked at.
    with pytest.raises(errors.CheckpointError, match='holds only damaged'):
      resume(workdir)
  assert len(os.listdir(workdir / 'damaged')) == 3
