"""One run a workdir: a lock that its process cannot outlive."""

import contextlib
import fcntl
import os
import socket
import time
from typing import TextIO

from lipnext_jax import errors
from lipnext_jax import files

FILE = 'lock'


# Seconds in which a file that one host has written must be seen by another: NFS
# clients may believe for 60 (acdirmax of nfs(5)) that it is not there.
_VISIBLE = 90


def check_seen(workdir: str, holder: int, seconds: float = _VISIBLE) -> None:
  """Whether this process sees the lock that another one of its run has taken.

  Not for the holder itself: POSIX takes a lock from a process that closes its
  file, however often it has opened it.

  Args:
    workdir: of the run.
    holder: what `Lock.acquire` returned there.
    seconds: to wait for the file.

  Raises:
    ConfigError: it does not: the processes have different directories there.
  """
  path = os.path.join(workdir, FILE)
  end = time.monotonic() + seconds
  while True:
    with contextlib.suppress(OSError), open(path, encoding='utf-8') as file:
      if file.read().startswith(f'process {holder} on '):
        return
    if time.monotonic() > end:
      break
    time.sleep(0.1)
  raise errors.ConfigError(
    '--workdir',
    workdir,
    f'is not shared: {socket.gethostname()} does not see the lock of the first '
    'process',
    'name a directory on storage that all hosts have mounted',
  )


class Lock:
  """Held from `acquire` to `release`, or to the end of the process.

  A POSIX record lock: the kernel lets go of it when the process ends, however
  it ends, and network file systems carry it to other machines. What stands in
  the file only helps the message.
  """

  def __init__(self, workdir: str):
    """Takes nothing yet."""
    self._workdir = workdir
    self._file: TextIO | None = None

  def acquire(self) -> int:
    """Takes the lock, creating the workdir.

    Returns:
      The number of this process, which now stands in the file.

    Raises:
      ConfigError: another process holds it.
      WorkdirError: the workdir cannot be written.
    """
    path = os.path.join(self._workdir, FILE)
    try:
      os.makedirs(self._workdir, exist_ok=True)
      file = files.append(path)
    except OSError as error:
      raise errors.WorkdirError(
        f'--workdir={self._workdir!r} cannot be written ({error.strerror}); '
        'choose another directory or permit writing'
      ) from None
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.seek(0)
      holder = file.read().strip() or 'another process'
      file.close()
      raise errors.ConfigError(
        '--workdir',
        self._workdir,
        f'is in use by {holder}',
        'wait for it, stop it, or choose another directory',
      ) from None
    file.seek(0)
    file.truncate()
    since = time.strftime('%Y-%m-%d %H:%M:%S')
    file.write(f'process {os.getpid()} on {socket.gethostname()} since {since}')
    file.flush()
    self._file = file
    return os.getpid()

  def release(self) -> None:
    """Lets go; harmless when nothing is held."""
    if self._file is not None:
      self._file.close()
      self._file = None
