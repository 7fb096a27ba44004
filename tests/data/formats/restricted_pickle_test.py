import contextlib
import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest

from lipnext_jax.data.formats import restricted_pickle


def test_python_2_batches_are_read(formats):
  array = formats.pixels(0, 4, 6).reshape(4, -1)
  batch = {b'data': array, b'labels': [3, -1], b'batch_label': b'one of five'}
  read = restricted_pickle.loads(formats.pickle(batch))
  np.testing.assert_array_equal(read['data'], array)
  assert read['data'].dtype == np.uint8
  assert read['labels'] == [3, -1]
  assert read['batch_label'] == b'one of five'


def test_the_test_format_is_what_python_3_understands_as_numpy(formats):
  array = formats.pixels(0, 4, 6).reshape(4, -1)
  read = pickle.loads(formats.pickle({b'data': array}), encoding='bytes')
  np.testing.assert_array_equal(read[b'data'], array)


@pytest.mark.parametrize('protocol', [0, 1, 2, 4])
def test_python_3_pickles_of_the_same_are_read(protocol):
  array = np.arange(12, dtype=np.uint8).reshape(3, 4)
  data = pickle.dumps({'data': array, b'labels': [1, 2]}, protocol)
  read = restricted_pickle.loads(data)
  np.testing.assert_array_equal(read['data'], array)
  assert read['labels'] == [1, 2]


class Attack:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (self._path,)


def test_code_is_refused_where_pickle_would_run_it(tmp_path):
  target = tmp_path / 'owned'
  data = pickle.dumps({'data': Attack(str(target))})
  with pytest.raises(restricted_pickle.RefusedError, match='mkdir'):
    restricted_pickle.loads(data)
  assert not target.exists()
  pickle.loads(data)
  assert target.exists()  # So the attack is one.


REFUSED = {
  'a function': pickle.dumps({'f': print}),
  'a class of numpy': pickle.dumps({'f': np.random.RandomState}),
  'eval': b"c__builtin__\neval\n(S'1'\ntR.",
  'getattr': b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'x'\ntR.",
  'an array of floats': pickle.dumps({'data': np.zeros(3)}),
  'an array of objects': pickle.dumps({'data': np.array([{}], object)}),
  'another codec': b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
  'no dict': pickle.dumps([1, 2]),
  'nothing': b'',
  'no pickle': b'PK\x03\x04',
  'a cut pickle': pickle.dumps({'a': [1] * 50})[:-20],
  'a set': pickle.dumps({'f': {1, 2}}),
  'a complex number': pickle.dumps({'f': 1j}),
  'a dict in a dict': pickle.dumps({'f': {}}),
  'a list in a list': pickle.dumps({'f': [[]]}),
  'a tuple': pickle.dumps({'f': (1, 2)}),
  'a key that is no string': pickle.dumps({3: 1}),
  'no end': b'\x80\x02}',
  'nothing to end': b'\x80\x02.',
  'a key without a value': b'}(U\x01au.',
  'an item of no list': b'}K\x01a.',
  'an item of no dict': b'](U\x01aK\x01u.',
  'a state for a number': b'K\x01}b.',
  'a call of a number': b'K\x01)R.',
  'a function given a state': b'c_codecs\nencode\n}U\x01aK\x01sb.',
  'an array made without numpy': b'cnumpy\nndarray\n)R.',
  'a reconstruction of nothing': b'cnumpy.core.multiarray\n_reconstruct\n)R.',
  'an encoding of nothing': b'c_codecs\nencode\n)R.',
  'a type of nothing': b'cnumpy\ndtype\n)R.',
}


@pytest.mark.parametrize('case', REFUSED)
def test_everything_else_is_refused_in_one_line(case):
  with pytest.raises(restricted_pickle.RefusedError) as info:
    restricted_pickle.loads(REFUSED[case])
  assert '\n' not in str(info.value)


def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused(formats):
  data = formats.pickle({b'data': np.zeros((2, 5), np.uint8)})
  shorter = data.replace(b'J\x05\x00\x00\x00', b'J\x06\x00\x00\x00')
  assert shorter != data
  with pytest.raises(restricted_pickle.RefusedError, match='10 bytes'):
    restricted_pickle.loads(shorter)


def nested(levels, *, memo):
  """A tuple of two of a tuple of two of …: 2 ** levels leaves in few bytes."""
  data = b')'
  for i in range(levels):
    if memo:
      data += b'q%ch%c\x86' % (i, i)
    else:
      data += b'2\x86'  # DUP.
  return data


def exponential():
  deep = nested(200, memo=True)
  array = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R'
  return {
    'key': b'}' + deep + b'K\x01s.',
    'key, without a memo': b'}' + nested(200, memo=False) + b'K\x01s.',
    'key, of items': b'}(' + deep + b'K\x01u.',
    'key of a new dict': b'(' + deep + b'K\x01d.',
    'member of a set': b'\x80\x04\x8f(' + deep + b'\x90.',
    'member of a frozen set': b'\x80\x04(' + deep + b'\x91.',
    'value': b'}U\x01a' + deep + b's.',
    'item': b']' + deep + b'a.',
    'encoding': b'c_codecs\nencode\nX\x01\x00\x00\x00a' + deep + b'\x86R.',
    'type': b'cnumpy\ndtype\n' + deep + b'\x85R.',
    'shape': array + b'(K\x01' + deep + b'NI00\nU\x01atb.',
    'order': array + b'(K\x01)NU' + b'\x01a' + deep + b'tb.',
    'state': array + deep + b'b.',
  }


@pytest.mark.parametrize('case', exponential())
def test_values_that_take_years_to_hash_or_print_are_refused(case):
  start = time.monotonic()
  with pytest.raises(restricted_pickle.RefusedError) as info:
    restricted_pickle.loads(exponential()[case])
  assert len(str(info.value)) < 200
  assert time.monotonic() - start < 1


def peak(data):
  """Bytes that reading takes, whatever comes of it."""
  tracemalloc.start()
  with contextlib.suppress(restricted_pickle.RefusedError):
    restricted_pickle.loads(data)
  found = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return found


def test_a_far_entry_of_the_memo_takes_no_memory():
  # A table of 2³¹ entries would have 16 GiB.
  data = b'\x80\x02}r\xff\xff\xff\x7f.'
  assert restricted_pickle.loads(data) == {}
  assert peak(data) < 1 << 20


def test_a_short_pickle_of_many_copies_of_a_text_is_refused():
  text = 'x' * 100_000
  data = b'}(X' + len(text).to_bytes(4, 'little') + text.encode() + b'q\x000'
  data += b'c_codecs\nencode\nq\x010'
  for i in range(500):  # 50 MB.
    data += b'U\x03%03d' % i + b'h\x01h\x00U\x06latin1q\x02\x86R'
  data = data.replace(b'U\x06latin1', b'X\x06\x00\x00\x00latin1') + b'u.'
  with pytest.raises(restricted_pickle.RefusedError, match='again and again'):
    restricted_pickle.loads(data)
  assert peak(data) < 4 << 20


def test_sides_of_an_array_may_not_be_huge_numbers(formats):
  """Their product would be one of millions of digits."""
  huge = b'\x8b' + (100_000).to_bytes(4, 'little') + b'\x7f' * 100_000
  data = formats.pickle({b'data': np.zeros((2, 5), np.uint8)})
  many = data.replace(b'J\x05\x00\x00\x00', huge)
  with pytest.raises(restricted_pickle.RefusedError, match='unknown layout'):
    restricted_pickle.loads(many)
