"""One run a workdir: a lock that its process cannot outlive."""

import fcntl
import os
import socket
import time
from typing import IO

from lipnext_jax import errors

FILE = 'lock'


class Lock:
  """Held from `acquire` to `release`, or to the end of the process.

  A POSIX record lock: the kernel lets go of it when the process ends, however
  it ends, and network file systems carry it to other machines. What stands in
  the file only helps the message.
  """

  def __init__(self, workdir: str):
    """Takes nothing yet."""
    self._workdir = workdir
    self._file: IO[str] | None = None

  def acquire(self) -> None:
    """Takes the lock, creating the workdir.

    Raises:
      ConfigError: another process holds it.
      WorkdirError: the workdir cannot be written.
    """
    path = os.path.join(self._workdir, FILE)
    try:
      os.makedirs(self._workdir, exist_ok=True)
      file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115 (kept open)
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

  def release(self) -> None:
    """Lets go; harmless when nothing is held."""
    if self._file is not None:
      self._file.close()
      self._file = None
