"""Errors that a user can mend: each is one line and an exit code."""

from collections.abc import Iterator
import contextlib
import sys


def printable(text: str) -> str:
  r"""Escapes line breaks and control characters of a text.

  >>> printable('a\x1b[2J\n.png')
  'a\\x1b[2J\\n.png'
  """
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )


def one_line(error: BaseException) -> str:
  r"""Returns the message of an error in one line, or its kind if it is empty.

  >>> one_line(ValueError('two\n  lines')), one_line(EOFError())
  ('two lines', 'EOFError')
  """
  return ' '.join(str(error).split())[:300] or type(error).__name__


class UserError(Exception):
  r"""An error with a cause outside of the code; it is shown without traceback.

  Its text is one printable line, whatever it quotes.

  >>> str(UserError('two\nlines'))
  'two\\nlines'
  """

  exit_code = 1

  def __str__(self) -> str:
    return printable(super().__str__())


class ConfigError(UserError):
  """A config field, a flag, a dataset or a workdir that does not fit.

  >>> str(ConfigError('model.beta', 2, 'is outside [0, 1]', 'choose 0.5'))
  'model.beta=2 is outside [0, 1]; choose 0.5.'
  """

  exit_code = 2

  def __init__(self, field: str, value: object, problem: str, remedy: str):
    # Worker processes of the data pipeline send errors as pickles of `args`.
    super().__init__(field, value, problem, remedy)
    self.field = field

  def __str__(self) -> str:
    field, value, problem, remedy = self.args
    return printable(f'{field}={value!r} {problem}; {remedy}.')


class DataError(UserError):
  """Data on disk that are damaged, missing or of the wrong kind."""

  exit_code = 3


class CheckpointError(UserError):
  """A checkpoint that cannot be written or used."""

  exit_code = 4


class NonFiniteError(UserError):
  """Training that reached infinities or NaNs and cannot leave them.

  `saved` is the step of the newest checkpoint, or None if there is none.
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
  """A file or folder of the run that cannot be written or read."""

  exit_code = 7


class LostProcessError(UserError):
  """A process of the run that is lost, so that the others cannot go on."""

  exit_code = 9


class OutOfMemoryError(UserError):
  """Too little memory, on a device or on the machine, for the config."""

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
