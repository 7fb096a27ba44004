import fcntl
import os
import subprocess
import sys
import threading

import pytest

from lipnext_jax import checkpoint
from lipnext_jax import errors

HOLDER = """
import sys
from lipnext_jax import checkpoint
held = checkpoint.Lock(sys.argv[1])
held.acquire()
print('held', flush=True)
sys.stdin.readline()
"""


def test_one_process_holds_it_until_it_ends_however_it_ends(tmp_path):
  workdir = f'{tmp_path}/run'
  own, again = checkpoint.Lock(workdir), checkpoint.Lock(workdir)
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
    elsewhere = checkpoint.Lock(str(tmp_path))
    for seen, pid in ((elsewhere, holder.pid), (own, holder.pid + 1)):
      with pytest.raises(errors.ConfigError, match='is not shared'):
        seen.check_seen(pid, seconds=0.2)
    holder.kill()
  # A run that failed leaves its lock to the next one in its process.
  assert own.acquire() == again.acquire() == os.getpid()
  own.check_seen(os.getpid(), seconds=0)  # What the killed one wrote is gone.
  again.release()
  with open(f'{workdir}/lock', 'a') as file:  # Free at once.
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_may_be_seen_late(tmp_path):
  """Network file systems show new files late."""
  (tmp_path / 'lock.txt').write_text('process 7 on here since long ago')
  own = checkpoint.Lock(str(tmp_path))
  late = threading.Timer(0.3, own.acquire)
  late.start()
  own.check_seen(os.getpid(), seconds=30)
  late.join()
  own.release()
