import os
import stat
import subprocess
import sys
import threading

import pytest

from lipnext_jax import errors
from lipnext_jax import lock

HOLDER = """
import sys
from lipnext_jax import lock
held = lock.Lock(sys.argv[1])
held.acquire()
print('held', flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock of tmp_path/run."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, f'{tmp_path}/run'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdin.close()
  process.stdout.close()


def test_one_process_holds_it_and_the_other_is_told(tmp_path, holder):
  own = lock.Lock(f'{tmp_path}/run')
  with pytest.raises(errors.ConfigError, match=f'process {holder.pid} on'):
    own.acquire()
  own.release()  # Nothing is held: harmless.


def test_a_lock_dies_with_its_process(tmp_path, holder):
  holder.kill()
  holder.wait()
  own = lock.Lock(f'{tmp_path}/run')
  own.acquire()  # What the killed process wrote is still in the file.
  with open(f'{tmp_path}/run/{lock.FILE}') as file:
    assert file.read().startswith(f'process {os.getpid()} on')
  own.release()


def test_a_released_lock_can_be_taken_again(tmp_path):
  for _ in range(2):
    own = lock.Lock(f'{tmp_path}/run')
    own.acquire()
    assert str(os.getpid()) in (tmp_path / 'run' / lock.FILE).read_text()
    own.release()


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').touch(mode=stat.S_IRUSR)
  with pytest.raises(errors.UserError, match='cannot be written'):
    lock.Lock(f'{tmp_path}/file/run').acquire()


def test_the_other_processes_of_a_run_see_its_lock(tmp_path, holder):
  lock.check_seen(f'{tmp_path}/run', holder.pid, seconds=0)
  with pytest.raises(errors.ConfigError, match='is not shared'):
    lock.check_seen(f'{tmp_path}/other', holder.pid, seconds=0.2)
  with pytest.raises(errors.ConfigError, match='is not shared'):  # An old one.
    lock.check_seen(f'{tmp_path}/run', holder.pid + 1, seconds=0.2)


def test_a_lock_may_be_seen_late(tmp_path):
  """As network file systems have it."""
  (tmp_path / lock.FILE).write_text('process 7 on here since long ago')
  own = lock.Lock(str(tmp_path))
  late = threading.Timer(0.5, own.acquire)
  late.start()
  lock.check_seen(str(tmp_path), os.getpid(), seconds=30)
  late.join()
  own.release()


def test_acquire_says_who_holds_it(tmp_path):
  own = lock.Lock(str(tmp_path))
  assert own.acquire() == os.getpid()
  own.release()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  (tmp_path / lock.FILE).symlink_to(precious)
  with pytest.raises(errors.WorkdirError, match='cannot be written'):
    lock.Lock(str(tmp_path)).acquire()
  assert precious.read_text() == 'precious'
