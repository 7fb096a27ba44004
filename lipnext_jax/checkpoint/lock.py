"""Locks a workdir for one run; the lock ends with the process that holds it.

A bucket cannot be locked. There, a message names the last run that started.
"""

import os
import socket
import sys
import time

import filelock

from lipnext_jax import errors
from lipnext_jax import files

HOLDER = 'lock.txt'  # File that names the process that holds the lock.

# Seconds after which another host must see a new file. NFS clients cache
# directories for up to 60 (acdirmax in nfs(5)).
_VISIBLE = 90


class Lock:
  """A lock held from `acquire` to `release` or the end of the process.

  The kernel releases it however the process ends. A process that holds the
  lock may take it again.
  """

  def __init__(self, workdir: str):
    """Does not take the lock yet."""
    self._workdir = workdir
    self._holder = os.path.join(workdir, HOLDER)
    self._lock = filelock.FileLock(
      os.path.join(workdir, 'lock'), thread_local=False, is_singleton=True
    )

  def acquire(self) -> int:
    """Takes the lock; creates the workdir if needed.

    Returns:
      The id of this process, for `check_seen`.

    Raises:
      ConfigError: another process holds the lock.
      OSError: the workdir cannot be written.
    """
    files.make_folder(self._workdir)
    if files.is_remote(self._workdir):
      print(
        f'{self._workdir} cannot be locked: make sure that no other run uses '
        f'it (the last to start was {self._read_holder() or "none"})',
        file=sys.stderr,
      )
    else:
      try:
        self._lock.acquire(blocking=False)
      except filelock.Timeout:
        raise errors.ConfigError(
          '--workdir',
          self._workdir,
          f'is in use by {self._read_holder() or "another process"}',
          'wait for it, stop it, or choose another directory',
        ) from None
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    own = f'process {os.getpid()} on {socket.gethostname()} since {since}'
    files.write_text(self._holder, own)
    return os.getpid()

  def release(self) -> None:
    """Releases the lock, if it is held."""
    self._lock.release(force=True)

  def check_seen(self, holder: int, seconds: float = _VISIBLE) -> None:
    """Checks that this process sees the lock of the first process of its run.

    Args:
      holder: process id that `acquire` returned in the first process.
      seconds: longest time to wait for the file.

    Raises:
      ConfigError: the workdir of this process is another directory.
    """
    end = time.monotonic() + seconds
    while not self._read_holder().startswith(f'process {holder} on '):
      if time.monotonic() > end:
        raise errors.ConfigError(
          '--workdir',
          self._workdir,
          f'is not shared: {socket.gethostname()} does not see the lock of the '
          'first process',
          'name a directory on storage that all hosts have mounted',
        )
      time.sleep(0.1)

  def _read_holder(self) -> str:
    """Reads who took the lock last; '' if nobody did."""
    try:
      with files.open_text(self._holder) as file:
        return file.read()
    except OSError:
      return ''
