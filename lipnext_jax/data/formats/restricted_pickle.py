"""The pickles of CIFAR, read without running what a pickle may run.

Unpickling calls whatever functions the file names. The official batches need
dicts, lists, strings, numbers, and uint8 arrays that Python 2 wrote; here the
array's parts are read into stand-ins, so that not even NumPy's own
reconstruction sees them, and everything else is refused.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np


class RefusedError(ValueError):
  """The pickle asks for more than arrays of bytes in plain containers."""


class _Dtype:
  """Stands for numpy.dtype; only bytes are allowed."""

  def __init__(self, name, *options):
    del options  # Alignment and copying mean nothing for bytes.
    if name not in ('u1', b'u1', '|u1'):
      raise RefusedError(f'holds an array of {name!r} instead of uint8')

  def __setstate__(self, state):
    del state  # Byte order and the like: none for single bytes.


class _Array:
  """Stands for numpy.ndarray; holds bytes and checks their number."""

  value: np.ndarray | None = None

  def __setstate__(self, state):
    version, shape, dtype, fortran, data = state
    if version != 1 or not isinstance(dtype, _Dtype) or fortran:
      raise RefusedError('holds an array of unknown layout')
    if not isinstance(data, bytes) or math.prod(shape) != len(data):
      raise RefusedError(f'holds {len(data)} bytes for an array {shape}')
    self.value = np.frombuffer(data, np.uint8).reshape(shape)


def _reconstruct(kind, *shape_and_dtype):
  del shape_and_dtype  # Placeholders: the state that follows has the real ones.
  if kind is not _Array:
    raise RefusedError('reconstructs something other than an array')
  return _Array()


def _encode(text, encoding):
  if encoding != 'latin1':
    raise RefusedError(f'encodes as {encoding!r}')
  return text.encode('latin1')


_ALLOWED = {
  ('numpy', 'ndarray'): _Array,
  ('numpy', 'dtype'): _Dtype,
  ('numpy.core.multiarray', '_reconstruct'): _reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): _reconstruct,
  ('_codecs', 'encode'): _encode,  # How Python 3 writes bytes in protocol 2.
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    if (module, name) not in _ALLOWED:
      raise RefusedError(f'asks for {module}.{name}, which is not allowed')
    return _ALLOWED[module, name]


def loads(data: bytes) -> dict[str, Any]:
  """A CIFAR batch: a dict whose byte keys have become text.

  Args:
    data: the whole pickle, of Python 2 or 3.

  Returns:
    Lists, strings as bytes, integers, and arrays as uint8.

  Raises:
    RefusedError: it is malformed, is no dict, or asks for anything else.

  >>> loads(pickle.dumps({b'labels': [3, 4]}))
  {'labels': [3, 4]}
  >>> try:
  ...   loads(pickle.dumps({'f': print}))
  ... except RefusedError as error:
  ...   print(error)
  asks for builtins.print, which is not allowed
  """
  try:
    for opcode, arg, _ in pickletools.genops(data):
      # An index far beyond the file would make a memo that fills the memory.
      if opcode.name.endswith('PUT') and (arg or 0) > len(data):
        raise RefusedError('is malformed')
    value = _Unpickler(io.BytesIO(data), encoding='bytes').load()
  except RefusedError:
    raise
  except Exception as error:  # A malformed pickle raises anything.
    raise RefusedError(f'is malformed ({error})') from None
  if not isinstance(value, dict):
    raise RefusedError('holds no dict')
  return {_text(key): _unwrap(item) for key, item in value.items()}


def _text(key) -> str:
  return key.decode('latin1') if isinstance(key, bytes) else str(key)


def _unwrap(item):
  return item.value if isinstance(item, _Array) else item
