"""Errors that a user can mend: one line each, with an exit code."""

from collections.abc import Iterator
import contextlib
import sys


def printable(text: str) -> str:
  r"""Returns a text in one line that a terminal shows as it is.

  >>> printable('a\x1b[2J\n.png')
  'a\\x1b[2J\\n.png'
  """
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


class UserError(Exception):
  r"""An error outside of the code; `main` prints it without a traceback.

  Its text is one line that a terminal shows as it is, whatever it quotes.

  >>> str(UserError('two\nlines'))
  'two\\nlines'
  """

  exit_code = 1

  def __str__(self) -> str:
    return printable(super().__str__())


class ConfigError(UserError):
  """A config field, a flag, a dataset or a workdir does not fit.

  Args:
    field: the field or flag at fault, e.g. 'model.beta'.
    value: what it holds.
    problem: what is wrong with that.
    remedy: what to do.

  >>> str(ConfigError('model.beta', 2, 'is outside [0, 1]', 'choose 0.5'))
  'model.beta=2 is outside [0, 1]; choose 0.5.'
  """

  exit_code = 2

  def __init__(self, field: str, value: object, problem: str, remedy: str):
    super().__init__(f'{field}={value!r} {problem}; {remedy}.')
    self.field = field
    self._parts = field, value, problem, remedy

  def __reduce__(self):
    # Data worker processes send their errors pickled.
    return type(self), self._parts


class DataError(UserError):
  """Data on disk are damaged, missing or not what they should be.

  One message, so that it survives the way out of a worker process.

  >>> str(DataError('train.tar, n01440764_1.JPEG: is truncated'))
  'train.tar, n01440764_1.JPEG: is truncated'
  """

  exit_code = 3


class CheckpointError(UserError):
  """A checkpoint cannot be written or used."""

  exit_code = 4


class NonFiniteError(UserError):
  """Training reached infinities or NaNs that it cannot leave.

  Args:
    step: at which it stops.
    problem: what is not finite.
    saved: the newest checkpoint's step; None: there is none.

  >>> str(NonFiniteError(7, 'the loss is NaN', None))[:40]
  'step 7: the loss is NaN; no checkpoint w'
  """

  exit_code = 6

  def __init__(self, step: int, problem: str, saved: int | None):
    left = 'no checkpoint was written yet'
    if saved is not None:
      left = f'the checkpoint of step {saved} is intact'
    super().__init__(
      f'step {step}: {problem}; {left}. Lower optimizer.learning_rate or '
      'optimizer.clip_norm, lengthen optimizer.warmup, or choose '
      "model.dtype='float32'."
    )


class WorkdirError(UserError):
  """A file or folder of the run cannot be written or read."""

  exit_code = 7


class LostProcessError(UserError):
  """Another process of the run is gone; this one cannot go on alone."""

  exit_code = 9


class OutOfMemoryError(UserError):
  """A device or the machine has too little memory for the config."""

  exit_code = 8


def install_command(extra: str) -> str:
  """Returns the command that installs an extra of setup.cfg in a clone.

  >>> install_command('data')
  "pip install -c constraints.txt -e '.[data]'"
  """
  return f"pip install -c constraints.txt -e '.[{extra}]'"


@contextlib.contextmanager
def needing_extra(extra: str, module: str) -> Iterator[None]:
  """Ends a program whose imports lack a package of an extra, in one line.

  Modules that import a program, rather than run it, get the `ImportError`.

  Args:
    extra: extra of setup.cfg that has the packages, e.g. 'train'.
    module: `__name__` of the module whose imports stand in the context.
  """
  try:
    yield
  except ImportError as missing:
    # For `python -m PACKAGE`, Python imports the package under the name '-m'
    # before it runs its `__main__`.
    if module != '__main__' and sys.argv[0] != '-m':
      raise
    print(
      f'error: this program needs a package that is not installed '
      f'({missing.name}); in a clone of the repository: '
      f'{install_command(extra)}.',
      file=sys.stderr,
    )
    sys.exit(ConfigError.exit_code)
