import errno
import json

import numpy as np
import pytest

from lipnext_jax import files


def test_a_file_is_replaced_at_once(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(str(path), {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(str(path), {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}


def test_arrays_come_back_and_no_temporary_file_stays(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_arrays(str(path), {'a': np.arange(3), 'b': np.array(['x'])})
  with np.load(path, allow_pickle=False) as stored:
    assert stored['a'].tolist() == [0, 1, 2]
    assert stored['b'].tolist() == ['x']
  assert list(tmp_path.iterdir()) == [path]


def test_arrays_that_cannot_be_written_leave_the_old_ones(tmp_path):
  path = tmp_path / 'x.npz'
  files.write_arrays(str(path), {'a': np.arange(3)})
  with pytest.raises(TypeError):
    files.write_arrays(str(path), {7: np.arange(3)})
  with np.load(path) as stored:
    assert stored['a'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('text', ['', '{', '[' * 100_000])
def test_what_is_no_json_is_a_value_error(tmp_path, text):
  path = tmp_path / 'x.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'.'):
    files.read_json(str(path))


def test_a_write_that_fails_names_its_file():
  def write():
    with files.naming('/dev/full'), open('/dev/full', 'w') as file:
      file.write('x')

  with pytest.raises(OSError, match='/dev/full') as error:
    write()
  assert error.value.errno == errno.ENOSPC
