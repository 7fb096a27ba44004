"""Locks a workdir for one run; the lock ends with its process.

Buckets know no such lock: there, a line says so, and who came last.
"""

import os
import socket
import sys
import time

import filelock

from lipnext_jax import errors
from lipnext_jax import files

FILE = 'lock'
HOLDER = 'lock.txt'  # Names the process that holds it.

# Seconds until another host sees a new file at the latest. NFS clients may
# believe for 60 (acdirmax of nfs(5)) that it is not there.
_VISIBLE = 90


class Lock:
  """A lock held from `acquire` to `release` or the end of the process.

  The kernel releases it however the process ends. Within a process it may be
  taken again.
  """

  def __init__(self, workdir: str):
    """Takes nothing yet."""
    self._workdir = workdir
    self._lock = filelock.FileLock(
      os.path.join(workdir, FILE), thread_local=False, is_singleton=True
    )

  def acquire(self) -> int:
    """Takes the lock, creating the workdir.

    Returns:
      The id of this process, for `check_seen`.

    Raises:
      ConfigError: another process holds it.
      WorkdirError: the workdir cannot be written.
    """
    try:
      files.make_folder(self._workdir)
      if files.is_remote(self._workdir):
        _warn(self._workdir)
      else:
        self._lock.acquire(blocking=False)
      since = time.strftime('%Y-%m-%d %H:%M:%S')
      files.write_text(
        os.path.join(self._workdir, HOLDER),
        f'process {os.getpid()} on {socket.gethostname()} since {since}',
      )
    except filelock.Timeout:
      raise errors.ConfigError(
        '--workdir',
        self._workdir,
        f'is in use by {_read_holder(self._workdir) or "another process"}',
        'wait for it, stop it, or choose another directory',
      ) from None
    except OSError as error:
      raise errors.WorkdirError(
        f'--workdir={self._workdir!r} cannot be written ('
        f'{error.strerror or error}); choose another directory or permit '
        'writing'
      ) from None
    return os.getpid()

  def release(self) -> None:
    """Releases the lock, if it is held."""
    self._lock.release(force=True)


def check_seen(workdir: str, holder: int, seconds: float = _VISIBLE) -> None:
  """Checks that this process sees the lock of the first one of its run.

  Args:
    workdir: of the run.
    holder: id that `Lock.acquire` returned in the first process.
    seconds: to wait for the file.

  Raises:
    ConfigError: the processes have different directories of that name.
  """
  end = time.monotonic() + seconds
  while not _read_holder(workdir).startswith(f'process {holder} on '):
    if time.monotonic() > end:
      raise errors.ConfigError(
        '--workdir',
        workdir,
        f'is not shared: {socket.gethostname()} does not see the lock of the '
        'first process',
        'name a directory on storage that all hosts have mounted',
      )
    time.sleep(0.1)


def _warn(workdir: str) -> None:
  """Says that nothing prevents a second run, and which one was the last."""
  print(
    f'{workdir} cannot be locked: make sure that no other run uses it (the '
    f'last to start was {_read_holder(workdir) or "none"})',
    file=sys.stderr,
    flush=True,
  )


def _read_holder(workdir: str) -> str:
  try:
    with files.open_text(os.path.join(workdir, HOLDER)) as file:
      return file.read()
  except OSError:
    return ''
