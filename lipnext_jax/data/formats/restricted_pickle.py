"""The pickles of CIFAR, read without unpickling them.

A pickle is a program: it calls whatever functions it names, and can make a
value of a hundred bytes that takes years to hash or to print. The official
batches need few of its instructions: dicts of lists, strings and numbers, and
uint8 arrays that Python 2 wrote. Those are carried out here on values of these
kinds alone, and everything else is refused. Nothing is imported or called, and
nothing is hashed but strings.
"""

from collections.abc import Callable
import math
import pickletools
from typing import Any
from typing import NamedTuple

import numpy as np


class RefusedError(ValueError):
  """The pickle asks for more than arrays of bytes in plain containers."""


class _Name(NamedTuple):
  """A function or class that the pickle names; it stays a name."""

  module: str
  name: str


class _Dtype:
  """Stands for numpy.dtype; only bytes are allowed."""


class _Array:
  """Stands for numpy.ndarray; holds bytes once it is filled."""

  value: np.ndarray | None = None

  def fill(self, state: Any) -> None:
    """The state is (version, shape, dtype, fortran, bytes)."""
    if type(state) is not tuple or len(state) != 5:
      raise RefusedError('holds an array of unknown layout')
    version, shape, dtype, fortran, data = state
    plain = [type(x) for x in (version, shape, dtype, data)]
    if plain != [int, tuple, _Dtype, bytes] or version != 1:
      raise RefusedError('holds an array of unknown layout')
    # Sides above the number of bytes could make a product without end.
    sides = all(type(n) is int and 0 <= n <= len(data) for n in shape)
    if not sides or len(shape) > 4 or fortran not in (0, False):
      raise RefusedError('holds an array of unknown layout')
    if math.prod(shape) != len(data):
      raise RefusedError(f'holds {len(data)} bytes for an array {shape}')
    self.value = np.frombuffer(data, np.uint8).reshape(shape)


_NDARRAY = _Name('numpy', 'ndarray')
_DTYPE = _Name('numpy', 'dtype')
_RECONSTRUCT = (
  _Name('numpy.core.multiarray', '_reconstruct'),
  _Name('numpy._core.multiarray', '_reconstruct'),
)
# How Python 3 writes bytes in protocol 2.
_ENCODE = _Name('_codecs', 'encode')
_ALLOWED = (_NDARRAY, _DTYPE, *_RECONSTRUCT, _ENCODE)
_SCALARS = (bytes, str, int, float, bool, type(None))


class _Machine:
  """The stack and the memo of a pickle, and the instructions on them."""

  def __init__(self, size: int):
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # What lies below each mark.
    self._memo: dict[int, Any] = {}
    self._left = size  # Characters to be encoded: the file has no more.

  def run(self, data: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
      if opcode.name == 'STOP':
        return self._stack.pop()
      if opcode.name not in _INSTRUCTIONS:
        raise RefusedError(f'has the instruction {opcode.name}')
      _INSTRUCTIONS[opcode.name](self, argument)
    raise RefusedError('is malformed (no end)')

  def push(self, value: Any) -> None:
    self._stack.append(value)

  def mark(self, _: Any) -> None:
    self._below.append(self._stack)
    self._stack = []

  def pop_mark(self) -> list[Any]:
    """What lies above the topmost mark, which goes, too."""
    items = self._stack
    self._stack = self._below.pop()
    return items

  def pop_many(self, count: int) -> list[Any]:
    items = [self._stack.pop() for _ in range(count)]
    return items[::-1]

  def pop_target(self, items: list[Any]) -> tuple[Any, list[Any]]:
    """The container that lay below the items, and the items."""
    return self._stack.pop(), items

  def put(self, index: int) -> None:
    self._memo[index] = self._stack[-1]

  def memoize(self, _: Any) -> None:
    self._memo[len(self._memo)] = self._stack[-1]

  def get(self, index: int) -> None:
    self.push(self._memo[index])

  def extend(self, target: Any, items: list[Any]) -> None:
    if type(target) is not list:
      raise RefusedError('appends to something other than a list')
    if not all(type(item) in _SCALARS for item in items):
      raise RefusedError('holds a list of more than numbers and strings')
    target += items
    self.push(target)

  def update(self, target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
      raise RefusedError('sets an item of something other than a dict')
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Tuples may be nested so that their hash takes years.
      if type(key) not in (bytes, str):
        raise RefusedError('holds a key that is no string')
      if type(value) not in (*_SCALARS, list, _Array):
        raise RefusedError('holds more than lists, arrays and numbers')
      target[key] = value
    self.push(target)

  def name(self, module: Any, name: Any) -> None:
    if (
      type(module) is not str
      or type(name) is not str
      or _Name(module, name) not in _ALLOWED
    ):
      text = f'{module}.{name}' if type(module) is type(name) is str else 'it'
      raise RefusedError(f'asks for {text[:80]}, which is not allowed')
    self.push(_Name(module, name))

  def call(self, _: Any) -> None:
    """What the allowed functions would give."""
    function, arguments = self.pop_many(2)
    if type(function) is not _Name or type(arguments) is not tuple:
      raise RefusedError('calls something other than a function')
    first = arguments[0] if arguments else None
    if function in _RECONSTRUCT:
      # The rest are placeholders: the state that follows has the real ones.
      if type(first) is not _Name or first != _NDARRAY:
        raise RefusedError('reconstructs something other than an array')
      self.push(_Array())
    elif function == _DTYPE:
      # Alignment and copying, which follow, mean nothing for bytes.
      if type(first) not in (bytes, str) or first not in ('u1', b'u1', '|u1'):
        shown = repr(first)[:20] if type(first) in (bytes, str) else 'something'
        raise RefusedError(f'holds an array of {shown} instead of uint8')
      self.push(_Dtype())
    elif function == _ENCODE:
      self.push(self._encode(arguments))
    else:
      raise RefusedError('makes an array of unknown layout')

  def _encode(self, arguments: tuple[Any, ...]) -> bytes:
    if len(arguments) != 2 or not all(type(a) is str for a in arguments):
      raise RefusedError('encodes something other than text')
    text, encoding = arguments
    if encoding != 'latin1':
      raise RefusedError(f'encodes as {encoding[:20]!r}')
    self._left -= len(text)
    if self._left < 0:  # A short file could fill the memory with copies.
      raise RefusedError('encodes the same text again and again')
    return text.encode('latin1')

  def build(self, _: Any) -> None:
    """Gives the value on top a state."""
    state = self._stack.pop()
    value = self._stack[-1]
    if type(value) is _Array:
      value.fill(state)
    elif type(value) is not _Dtype:  # Byte order and the like: none for bytes.
      raise RefusedError('builds something other than an array')


_INTEGERS = ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4')
_FLOATS = ('FLOAT', 'BINFLOAT')
_BYTES = ('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8')
_TEXTS = ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
# By their names in `pickletools`, each with its argument, if it has one.
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], object]] = {
  'PROTO': lambda m, _: None,
  'FRAME': lambda m, _: None,
  'MARK': _Machine.mark,
  'POP': lambda m, _: m.pop_many(1),
  'POP_MARK': lambda m, _: m.pop_mark(),
  'MEMOIZE': _Machine.memoize,
  **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), _Machine.put),
  **dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), _Machine.get),
  **dict.fromkeys((*_INTEGERS, *_FLOATS, *_BYTES, *_TEXTS), _Machine.push),
  **dict.fromkeys(
    ('STRING', 'BINSTRING', 'SHORT_BINSTRING'),  # Of Python 2: bytes.
    lambda m, text: m.push(text.encode('latin1')),
  ),
  'NONE': lambda m, _: m.push(None),
  'NEWTRUE': lambda m, _: m.push(True),
  'NEWFALSE': lambda m, _: m.push(False),
  'EMPTY_TUPLE': lambda m, _: m.push(()),
  'TUPLE': lambda m, _: m.push(tuple(m.pop_mark())),
  'TUPLE1': lambda m, _: m.push(tuple(m.pop_many(1))),
  'TUPLE2': lambda m, _: m.push(tuple(m.pop_many(2))),
  'TUPLE3': lambda m, _: m.push(tuple(m.pop_many(3))),
  'EMPTY_LIST': lambda m, _: m.push([]),
  'LIST': lambda m, _: m.extend([], m.pop_mark()),
  'APPEND': lambda m, _: m.extend(*m.pop_target(m.pop_many(1))),
  'APPENDS': lambda m, _: m.extend(*m.pop_target(m.pop_mark())),
  'EMPTY_DICT': lambda m, _: m.push({}),
  'DICT': lambda m, _: m.update({}, m.pop_mark()),
  'SETITEM': lambda m, _: m.update(*m.pop_target(m.pop_many(2))),
  'SETITEMS': lambda m, _: m.update(*m.pop_target(m.pop_mark())),
  'GLOBAL': lambda m, argument: m.name(*argument.split(' ', 1)),
  'STACK_GLOBAL': lambda m, _: m.name(*m.pop_many(2)),
  'REDUCE': _Machine.call,
  'BUILD': _Machine.build,
}


def loads(data: bytes) -> dict[str, Any]:
  """A CIFAR batch: a dict whose byte keys have become text.

  Args:
    data: the whole pickle, of Python 2 or 3.

  Returns:
    Lists, strings as bytes, numbers, and arrays as uint8.

  Raises:
    RefusedError: it is malformed, is no dict, or asks for anything else.

  >>> import pickle
  >>> loads(pickle.dumps({b'labels': [3, 4]}))
  {'labels': [3, 4]}
  >>> try:
  ...   loads(pickle.dumps({'f': print}))
  ... except RefusedError as error:
  ...   print(error)
  asks for builtins.print, which is not allowed
  """
  try:
    value = _Machine(len(data)).run(data)
  except RefusedError:
    raise
  except Exception as error:  # A malformed pickle raises anything.
    reason = ' '.join(str(error).split())[:200]
    raise RefusedError(f'is malformed ({reason})') from None
  if type(value) is not dict:
    raise RefusedError('holds no dict')
  return {_text(key): _unwrap(item) for key, item in value.items()}


def _text(key: bytes | str) -> str:
  return key.decode('latin1') if isinstance(key, bytes) else key


def _unwrap(item: Any) -> Any:
  return item.value if isinstance(item, _Array) else item
