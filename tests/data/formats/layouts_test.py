import os

import pytest

from lipnext_jax import errors
from lipnext_jax.data.formats import layouts


def test_a_set_is_found_by_itself_or_in_its_folder(tmp_path):
  archive = tmp_path / 'set.zip'
  archive.write_bytes(b'')
  names = ('set.zip', 'set')
  assert layouts.find(str(tmp_path), names) == str(archive)
  assert layouts.find(str(archive), names) == str(archive)
  assert layouts.find(str(tmp_path / 'no'), names) is None
  (tmp_path / 'set').mkdir()
  found = layouts.find(str(tmp_path / 'set') + '/', names)
  assert os.path.normpath(found) == str(tmp_path / 'set')


def test_what_is_not_found_is_named(tmp_path):
  missing = layouts.not_found(str(tmp_path / 'no'), 'a.zip', 'b')
  assert 'does not exist' in str(missing)
  assert 'neither a.zip nor b' in str(
    layouts.not_found(str(tmp_path), 'a.zip', 'b')
  )


def test_subfolders_are_sorted_and_leave_files_out(tmp_path):
  for name in ('b', 'a'):
    (tmp_path / name).mkdir()
  (tmp_path / 'file').write_bytes(b'')
  assert layouts.subfolders(str(tmp_path)) == ['a', 'b']
  with pytest.raises(errors.DataError, match='is no folder'):
    layouts.subfolders(str(tmp_path / 'file'))
