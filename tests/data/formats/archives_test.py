import io
import os
import tarfile
import zipfile

import pytest

from lipnext_jax import errors
from lipnext_jax.data.formats import archives

FILES = {'a/one.txt': b'1' * 700, 'a/two.txt': b'22', 'empty.txt': b''}


def contents(entries):
  return {entry.name: archives.read(entry) for entry in entries}


def test_tars_zips_and_folders_give_the_same_bytes(tmp_path, formats):
  tar = formats.tar(tmp_path / 'x.tar', FILES)
  assert contents(archives.list_tar(tar)) == FILES
  path = formats.zip(tmp_path / 'x.zip', FILES, root='r/')
  found = contents(archives.list_zip(path))
  assert found == {f'r/{name}': data for name, data in FILES.items()}
  tree = formats.tree(tmp_path / 'tree', FILES)
  assert contents(archives.list_folder(tree)) == {'empty.txt': b''}
  below = contents(archives.list_folder(f'{tree}/a'))
  assert below == {'one.txt': b'1' * 700, 'two.txt': b'22'}


def test_tars_in_a_tar_are_read_in_place(tmp_path, formats):
  inner = {'x.tar': FILES, 'y.tar': {'three.txt': b'333'}}
  outer = {name: formats.tar_bytes(files) for name, files in inner.items()}
  path = formats.tar(tmp_path / 'outer.tar', outer)
  steps = []
  found = archives.list_tar_of_tars(path, lambda: steps.append(1))
  assert {name: contents(e) for name, e in found.items()} == inner
  assert len(steps) == 2


def test_compressed_tars_give_what_is_wanted(tmp_path, formats):
  path = formats.tar(tmp_path / 'x.tar.gz', FILES, 'w:gz')
  found = archives.read_tar_gz(path, frozenset(['two.txt', 'absent']))
  assert found == {'two.txt': b'22'}


LISTERS = {
  '.tar': archives.list_tar,
  '.tar.gz': lambda path: archives.read_tar_gz(path, frozenset(['one.txt'])),
}


def member(name, kind, **fields):
  info = tarfile.TarInfo(name)
  info.type = kind
  for field, value in fields.items():
    setattr(info, field, value)
  return info


HOSTILE = {
  'a name above': {'../evil': b'x'},
  'a name above, hidden': {'a/../../evil': b'x'},
  'an absolute name': {'/etc/evil': b'x'},
  'a name of Windows': {'..\\evil': b'x'},
  'a drive of Windows': {'C:/evil': b'x'},
  'a symbolic link': {
    's': member('s', tarfile.SYMTYPE, linkname='/etc/passwd')
  },
  'a hard link': {'h': member('h', tarfile.LNKTYPE, linkname='a')},
  'a device': {'d': member('d', tarfile.CHRTYPE, devmajor=1, devminor=5)},
  'a pipe': {'p': member('p', tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize('suffix', LISTERS)
@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_tar_members_are_refused(tmp_path, formats, case, suffix):
  path = formats.tar(
    tmp_path / f'x{suffix}',
    {'a': b'fine', **HOSTILE[case]},
    'w:gz' if suffix.endswith('gz') else 'w',
  )
  with pytest.raises(errors.DataError, match=r'leads outside|link or a device'):
    LISTERS[suffix](path)
  assert os.listdir(tmp_path) == [f'x{suffix}']


def test_the_same_name_twice_is_refused(tmp_path):
  path = tmp_path / 'x.tar'
  with tarfile.open(path, 'w') as tar:
    for data in (b'1', b'2'):
      info = tarfile.TarInfo('a')
      info.size = 1
      tar.addfile(info, io.BytesIO(data))
  with pytest.raises(errors.DataError, match='holds a twice'):
    archives.list_tar(str(path))


@pytest.mark.parametrize('suffix', LISTERS)
def test_cut_and_damaged_tars_are_refused(tmp_path, formats, suffix):
  mode = 'w:gz' if suffix.endswith('gz') else 'w'
  path = tmp_path / f'x{suffix}'
  formats.tar(path, {'one.txt': os.urandom(9000), 'two.txt': b'2'}, mode)
  whole = path.read_bytes()
  for cut in (0, 100, 3000, 9000):
    path.write_bytes(whole[:cut])
    with pytest.raises(errors.DataError, match='cannot be read'):
      LISTERS[suffix](str(path))
  path.write_bytes(b'<html>not found</html>' * 100)
  with pytest.raises(errors.DataError, match='cannot be read'):
    LISTERS[suffix](str(path))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, formats):
  path = tmp_path / 'x.tar'
  formats.tar(path, {'one.txt': b'1', 'two.txt': b'2'})
  data = bytearray(path.read_bytes())
  data[1024 + 3] ^= 0xFF  # In the name of the second member.
  path.write_bytes(data)
  with tarfile.open(path) as tar:
    assert tar.getnames() == ['one.txt']  # What tarfile makes of it.
  with pytest.raises(errors.DataError, match='damaged at byte 1024'):
    archives.list_tar(str(path))


def test_a_flipped_bit_in_a_compressed_tar_is_refused(tmp_path, formats):
  path = tmp_path / 'x.tar.gz'
  formats.tar(path, {'one.txt': os.urandom(9000)}, 'w:gz')
  data = bytearray(path.read_bytes())
  data[5000] ^= 1
  path.write_bytes(data)
  with pytest.raises(errors.DataError, match='cannot be read'):
    LISTERS['.tar.gz'](str(path))


def zip_with(tmp_path, name, mode=0o100644, data=b'x', **fields):
  path = tmp_path / 'x.zip'
  info = zipfile.ZipInfo(name)
  info.external_attr = mode << 16
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(info, data)
    for field, value in fields.items():  # Into the directory at the end.
      setattr(info, field, value)
  return str(path)


@pytest.mark.parametrize(
  ('name', 'mode', 'fields'),
  [
    ('', 0o100644, {}),
    ('../evil', 0o100644, {}),
    ('/etc/evil', 0o100644, {}),
    ('link', 0o120777, {}),
    ('device', 0o020666, {}),
    ('bomb', 0o100644, {'file_size': archives.MAX_BYTES + 1}),
  ],
)
def test_hostile_zip_entries_are_refused(tmp_path, name, mode, fields):
  path = zip_with(tmp_path, name, mode, **fields)
  with pytest.raises(errors.DataError, match=name or 'without a name'):
    archives.list_zip(path)
  assert os.listdir(tmp_path) == ['x.zip']


def test_cut_damaged_and_encrypted_zips_are_refused(tmp_path, formats):
  whole = tmp_path / 'whole.zip'
  formats.zip(whole, {'a': os.urandom(5000)}, root='r/')
  data = whole.read_bytes()
  for cut in (0, 50, 3000, len(data) - 10):
    path = tmp_path / f'{cut}.zip'
    path.write_bytes(data[:cut])
    with pytest.raises(errors.DataError, match='cannot be read'):
      archives.list_zip(str(path))

  flipped = bytearray(data)
  flipped[2500] ^= 1
  path = tmp_path / 'flipped.zip'
  path.write_bytes(flipped)
  (entry,) = [e for e in archives.list_zip(str(path)) if e.name == 'r/a']
  with pytest.raises(errors.DataError, match=r'flipped\.zip, r/a: cannot be'):
    archives.read(entry)

  locked = zip_with(tmp_path, 'secret', flag_bits=1)
  (entry,) = archives.list_zip(locked)
  with pytest.raises(errors.DataError, match=r'secret: .*password'):
    archives.read(entry)


def test_a_zip_entry_longer_than_it_claims_is_refused(tmp_path):
  path = zip_with(tmp_path, 'a', data=b'x' * 5000, file_size=50)
  (entry,) = archives.list_zip(path)
  with pytest.raises(errors.DataError, match='cannot be read'):
    archives.read(entry)


def test_a_file_that_shrank_since_it_was_listed_is_refused(tmp_path, formats):
  path = formats.tar(tmp_path / 'x.tar', FILES)
  first = archives.list_tar(path)[0]
  os.truncate(path, 900)
  with pytest.raises(errors.DataError, match='388 of 700 bytes'):
    archives.read(first)


def test_a_pipe_in_a_folder_is_an_error_and_no_hang(tmp_path):
  os.mkfifo(tmp_path / 'a.jpg')
  with pytest.raises(errors.DataError, match='no regular file'):
    archives.list_folder(str(tmp_path))


def test_a_link_to_nowhere_is_an_error_and_one_to_a_file_is_the_file(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'real' / 'f').write_bytes(b'abc')
  (tmp_path / 'links').mkdir()
  (tmp_path / 'links' / 'x').symlink_to(tmp_path / 'real' / 'f')
  assert contents(archives.list_folder(f'{tmp_path}/links')) == {'x': b'abc'}
  (tmp_path / 'links' / 'y').symlink_to(tmp_path / 'gone')
  with pytest.raises(errors.DataError, match='No such file'):
    archives.list_folder(f'{tmp_path}/links')


def test_a_file_of_absurd_size_is_refused(tmp_path):
  with open(tmp_path / 'x.tar', 'wb') as file:
    info = tarfile.TarInfo('a.jpg')
    info.size = archives.MAX_BYTES + 1
    file.write(info.tobuf())
    file.truncate(archives.MAX_BYTES + 2048)  # Sparse: nothing on the disk.
  with pytest.raises(errors.DataError, match='a bomb'):
    archives.list_tar(str(tmp_path / 'x.tar'))
