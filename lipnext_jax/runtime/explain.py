"""Explains errors of Python and JAX that the machine caused, not the code."""

import errno
import os
import signal

import jax

from lipnext_jax import errors
from lipnext_jax.runtime import interrupts

# Errors of disks. Other libraries quote their texts.
_DISK = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
)
# Words in the errors of collectives and of JAX's coordination service when a
# process does not answer, in lower case.
_GONE = (
  'gloo',
  'nccl',
  'connection closed',
  'connection reset',
  'heartbeat',
  'coordination',
  'unavailable',
  'deadline_exceeded',
)
# Packages that reach buckets, and raise their own kinds of errors.
_CLOUD = ('aiohttp', 'gcsfs', 'google')
_LONGEST = 200  # Characters that are quoted of a message.


def explain(error: BaseException) -> errors.UserError | None:
  """Explains an error of the machine in one line, or returns None.

  >>> explain(OSError(errno.ENOSPC, 'No space left on device', 'a.json')).args
  ('a.json: No space left on device; what was saved before is intact: make \
room or permit writing, then start again',)
  >>> explain(ValueError('a mistake')) is None
  True
  """
  if isinstance(error, errors.UserError):
    return error
  if isinstance(error, KeyboardInterrupt):
    return interrupts.StoppedError(signal.SIGINT, None)
  if isinstance(error, OSError):
    where = f'{error.filename}: ' if error.filename else ''
    return errors.WorkdirError(
      f'{where}{error.strerror or error}; what was saved before is intact: '
      'make room or permit writing, then start again'
    )
  if type(error).__module__.partition('.')[0] in _CLOUD:
    return errors.WorkdirError(
      f'cloud storage refused or did not answer ({quote(error)}); what was '
      'saved before is intact: see to credentials, permissions and the '
      'network, then start again'
    )
  if isinstance(error, MemoryError):
    return errors.OutOfMemoryError(
      f'out of memory ({quote(error)}): lower dataset.workers, batch_size or '
      'eval.batch_size; what was saved is intact'
    )
  if not isinstance(error, jax.errors.JaxRuntimeError):
    return None
  if 'RESOURCE_EXHAUSTED' in str(error):
    return errors.OutOfMemoryError(
      f'a device is out of memory ({quote(error)}): lower batch_size or '
      "eval.batch_size, set model.remat='products' or 'block', or split the "
      'parameters over more devices (mesh.fsdp); what was saved is intact'
    )
  text = str(error).lower()
  if jax.process_count() > 1 and any(word in text for word in _GONE):
    return errors.LostProcessError(
      f'process {jax.process_index()} of {jax.process_count()}: another one is '
      f'gone or does not answer ({quote(error)}); its own message says why. '
      'What was saved before is intact: the same command goes on there'
    )
  return None


def quote(error: BaseException) -> str:
  r"""Quotes an error in one line: the text of a disk's error, or the start.

  >>> quote(ValueError('write failed:\n  No space left on device [1]'))
  'No space left on device'
  """
  text = ' '.join(str(error).split())
  for number in _DISK:
    if os.strerror(number) in text:
      return os.strerror(number)
  return text[:_LONGEST]
