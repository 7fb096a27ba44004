import errno
import json
import os

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


def test_no_link_is_followed_out_of_a_folder(tmp_path):
  """A stranger's workdir may hold any name, leading anywhere."""
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  (tmp_path / 'a.json.tmp').symlink_to(precious)
  (tmp_path / 'a.json').symlink_to(precious)
  files.write_json(str(tmp_path / 'a.json'), {'a': 1})
  assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}
  (tmp_path / 'a.npz.tmp').symlink_to(precious)
  files.write_arrays(str(tmp_path / 'a.npz'), {'x': np.ones(2)})
  (tmp_path / 'log').symlink_to(precious)
  with pytest.raises(OSError, match='symbolic links'):
    files.append(str(tmp_path / 'log'))
  assert precious.read_text() == 'precious'


def test_lines_are_added(tmp_path):
  for line in ('a', 'b'):
    with files.append(str(tmp_path / 'log')) as file:
      file.write(line)
  assert (tmp_path / 'log').read_text() == 'ab'


def test_only_regular_files_of_some_size_are_read(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'zero').symlink_to('/dev/zero')
  for name in ('pipe', 'zero'):
    with pytest.raises(ValueError, match='no regular file'):
      files.read_json(str(tmp_path / name))
  (tmp_path / 'large').write_text('[1, 2, 3]')
  assert files.read_json(str(tmp_path / 'large')) == [1, 2, 3]
  monkeypatch.setattr(files, 'MAX_JSON', 8)
  with pytest.raises(ValueError, match='too large'):
    files.read_json(str(tmp_path / 'large'))
