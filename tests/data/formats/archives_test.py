import hashlib
import os
import tarfile
import zipfile

import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives

FILES = {
  'a/one.txt': b'1' * 700,
  'a/two.txt': b'22',
  'empty.txt': b'',
  'deep/' * 40 + 'ünïcode.txt': b'3',  # With extension headers.
}


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
  packed = formats.tar(tmp_path / 'x.tar.gz', FILES, 'w:gz')
  found = archives.read_tar_gz(packed, frozenset(['two.txt', 'absent']))
  assert found == {'two.txt': b'22'}


def test_tars_in_a_tar_are_read_in_place(tmp_path, formats):
  inner = {'x.tar': FILES, 'y.tar': {'three.txt': b'333'}}
  outer = {name: formats.tar_bytes(files) for name, files in inner.items()}
  path = formats.tar(tmp_path / 'outer.tar', outer)
  found = {
    tar.name: contents(archives.list_tar(path, tar))
    for tar in archives.list_tar(path)
  }
  assert found == inner
  # An inner tar that is cut off does not run on into what follows it.
  outer['x.tar'] = outer['x.tar'][:1024]
  path = formats.tar(tmp_path / 'outer.tar', outer)
  with pytest.raises(errors.DataError, match=r'x\.tar: cannot be read'):
    archives.list_tar(path, archives.list_tar(path)[0])


@pytest.mark.parametrize('algorithm', ['sha256', 'md5'])
def test_only_the_official_file_is_taken_unless_told_otherwise(
  tmp_path, monkeypatch, capsys, algorithm
):
  path = tmp_path / 'cifar-10-python.tar.gz'
  path.write_bytes(b'official')
  digest = hashlib.new(algorithm, b'official').hexdigest()
  monkeypatch.setitem(
    official.ARCHIVES, path.name, official.Archive(8, digest, algorithm)
  )
  archives.verify(str(path), allow_partial=False)
  assert not capsys.readouterr().err
  for data, problem in (
    (b'OFFICIAL', f'{algorithm} checksum'),
    (b'offic', 'has 5 bytes instead of 8'),
  ):
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=f'{problem}.*--allow_partial'):
      archives.verify(str(path), allow_partial=False)
    archives.verify(str(path), allow_partial=True)
    assert 'its contents are not verified' in capsys.readouterr().err


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
  'a name above': {'a/../../evil': b'x'},
  'an absolute name': {'/etc/evil': b'x'},
  'a name of Windows': {'..\\evil': b'x'},
  'a drive of Windows': {'C:/evil': b'x'},
  'a symbolic link': {
    's': member('s', tarfile.SYMTYPE, linkname='/etc/passwd')
  },
  'a hard link': {'h': member('h', tarfile.LNKTYPE, linkname='a')},
  'a device': {'d': member('d', tarfile.CHRTYPE, devmajor=1, devminor=5)},
  'a pipe': {'p': member('p', tarfile.FIFOTYPE)},
  'a sparse file': {'s': member('s', tarfile.GNUTYPE_SPARSE)},
  'a name twice': {'./a': b'x'},
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_members_of_tars_are_refused(tmp_path, formats, case):
  for suffix, lister in LISTERS.items():
    path = formats.tar(
      tmp_path / f'x{suffix}',
      {'a': b'fine', **HOSTILE[case]},
      'w:gz' if suffix.endswith('gz') else 'w',
    )
    with pytest.raises(errors.DataError, match=r'outside|link or dev|twice'):
      lister(path)
  assert sorted(os.listdir(tmp_path)) == ['x.tar', 'x.tar.gz']


@pytest.mark.parametrize('suffix', LISTERS)
def test_cut_and_damaged_tars_are_refused(tmp_path, formats, suffix):
  mode = 'w:gz' if suffix.endswith('gz') else 'w'
  path = tmp_path / f'x{suffix}'
  formats.tar(path, {'one.txt': os.urandom(9000), 'two.txt': b'2'}, mode)
  whole = path.read_bytes()
  damaged = [whole[:cut] for cut in (0, 100, 3000, 9000)]
  damaged.append(b'<html>not found</html>' * 100)
  if suffix == '.tar.gz':  # One bit, which gzip's checksum finds.
    damaged.append(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
  for data in damaged:
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=r'cannot be read|is damaged'):
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
  ('name', 'mode'),
  [
    ('', 0o100644),
    ('../evil', 0o100644),
    ('/etc/evil', 0o100644),
    ('link', 0o120777),
    ('device', 0o020666),
  ],
)
def test_hostile_zip_entries_are_refused(tmp_path, name, mode):
  path = zip_with(tmp_path, name, mode)
  with pytest.raises(errors.DataError, match=name or 'without a name'):
    archives.list_zip(path)
  assert os.listdir(tmp_path) == ['x.zip']


def test_cut_damaged_and_encrypted_zips_are_refused(tmp_path, formats):
  path = tmp_path / 'x.zip'
  formats.zip(path, {'a': os.urandom(5000)}, root='r/')
  whole = path.read_bytes()
  for cut in (0, 50, 3000, len(whole) - 10):
    path.write_bytes(whole[:cut])
    with pytest.raises(errors.DataError, match='cannot be read'):
      archives.list_zip(str(path))
  path.write_bytes(whole[:2500] + bytes([whole[2500] ^ 1]) + whole[2501:])
  (entry,) = [e for e in archives.list_zip(str(path)) if e.name == 'r/a']
  with pytest.raises(errors.DataError, match=r'x\.zip, r/a: cannot be'):
    archives.read(entry)
  for fields, problem in (
    ({'flag_bits': 1}, 'secret: .*password'),
    ({'file_size': 50}, 'cannot be read'),  # Longer than it claims.
    ({'file_size': archives.MAX_BYTES + 1}, 'has 268435457 bytes, more'),
  ):
    locked = zip_with(tmp_path, 'secret', data=b'x' * 5000, **fields)
    (entry,) = archives.list_zip(locked)
    with pytest.raises(errors.DataError, match=problem):
      archives.read(entry)


def test_files_that_shrank_or_are_no_files_are_refused(tmp_path, formats):
  path = formats.tar(tmp_path / 'x.tar', FILES)
  first = archives.list_tar(path)[0]
  os.truncate(path, 900)
  with pytest.raises(errors.DataError, match='388 of 700 bytes'):
    archives.read(first)
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'link').symlink_to(path)  # To a file: it is that file.
  assert archives.list_folder(str(folder))[0].size == 900
  (folder / 'lost').symlink_to(tmp_path / 'gone')
  with pytest.raises(errors.DataError, match='No such file'):
    archives.list_folder(str(folder))
  (folder / 'lost').unlink()
  os.mkfifo(folder / 'pipe')  # Reading it would never end.
  with pytest.raises(errors.DataError, match='not a regular file'):
    archives.list_folder(str(folder))


def test_a_negative_size_does_not_go_round_for_ever(tmp_path):
  info = tarfile.TarInfo('x')
  info.size = -512
  path = tmp_path / 'x.tar'
  path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
  with pytest.raises(errors.DataError, match='cannot be read'):
    archives.list_tar(str(path))
