import os
import pickle

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
  # A memo of 2³¹ entries would take 16 GiB.
  'a huge memo': b'\x80\x02}r\xff\xff\xff\x7f.',
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
