import os
import subprocess
import sys
import threading

import pytest

from lipnext_jax import errors
from lipnext_jax.checkpoint import lock

HOLDER = """
import sys
from lipnext_jax.checkpoint import lock
held = lock.Lock(sys.argv[1])
held.acquire()
print('held', flush=True)
sys.stdin.readline()
"""


def read_holder(workdir):
  with open(os.path.join(workdir, lock.HOLDER), encoding='utf-8') as file:
    return file.read()


def test_one_process_holds_it_until_it_ends_however_it_ends(tmp_path):
  workdir = f'{tmp_path}/run'
  own = lock.Lock(workdir)
  with subprocess.Popen(
    [sys.executable, '-c', HOLDER, workdir],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as holder:
    assert holder.stdout.readline() == 'held\n'
    in_use = rf"--workdir='{workdir}' is in use by process {holder.pid} on"
    for _ in range(2):  # A refused one does not change what the next is told.
      with pytest.raises(errors.ConfigError, match=in_use):
        own.acquire()
    own.release()  # Nothing is held: harmless.
    # The other processes of its run see it; those elsewhere, or of another: no.
    own.check_seen(holder.pid, seconds=0)
    elsewhere = lock.Lock(str(tmp_path))
    for seen, pid in ((elsewhere, holder.pid), (own, holder.pid + 1)):
      with pytest.raises(errors.ConfigError, match='is not shared'):
        seen.check_seen(pid, seconds=0.2)
    holder.kill()
  assert own.acquire() == os.getpid()  # What the killed one wrote is replaced.
  assert read_holder(workdir).startswith(f'process {os.getpid()} on')
  own.release()


def test_a_process_that_holds_it_may_take_it_again(tmp_path):
  """A run that failed leaves its lock to the next one in its process."""
  first, again = lock.Lock(str(tmp_path)), lock.Lock(str(tmp_path))
  first.acquire()
  again.acquire()
  again.release()
  probe = f"""
import filelock
filelock.FileLock({str(tmp_path / 'lock')!r}).acquire(blocking=False)
"""
  subprocess.run([sys.executable, '-c', probe], check=True)  # Free at once.


def test_a_lock_may_be_seen_late(tmp_path):
  """Network file systems show new files late."""
  (tmp_path / lock.HOLDER).write_text('process 7 on here since long ago')
  own = lock.Lock(str(tmp_path))
  late = threading.Timer(0.3, own.acquire)
  late.start()
  own.check_seen(os.getpid(), seconds=30)
  late.join()
  own.release()
