import os

import pytest

from lipnext_jax import errors
from lipnext_jax.data.formats import layouts


def test_a_set_is_found_by_itself_or_in_its_folder_or_named_missing(tmp_path):
  source, names = str(tmp_path), ('set.zip', 'set')
  assert 'neither a.zip nor b' in str(layouts.not_found(source, 'a.zip', 'b'))
  assert layouts.find(source, names) is None
  missing = layouts.not_found(f'{source}/no', 'a.zip', 'b')
  assert 'does not exist' in str(missing)
  (tmp_path / 'set.zip').write_bytes(b'')
  (tmp_path / 'set').mkdir()
  assert layouts.find(source, names) == f'{source}/set.zip'
  assert layouts.find(f'{source}/set.zip', names) == f'{source}/set.zip'
  assert layouts.find(f'{source}/set/', names) == f'{source}/set'


def test_subfolders_are_sorted_and_leave_files_out(tmp_path):
  for name in ('b', 'a'):
    (tmp_path / name).mkdir()
  (tmp_path / 'file').write_bytes(b'')
  assert layouts.subfolders(str(tmp_path)) == ['a', 'b']
  with pytest.raises(errors.DataError, match='is not a folder'):
    layouts.subfolders(os.path.join(tmp_path, 'file'))
