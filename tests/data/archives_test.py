import hashlib
import os
import tarfile

import pytest

from lipnext_jax import errors
from lipnext_jax.data import archives
from lipnext_jax.data import official

FILES = {
  'a/one.txt': b'1' * 700,
  'a/two.txt': b'22',
  'empty.txt': b'',
  'deep/' * 40 + 'ünïcode.txt': b'3',  # With extension headers.
}
SUFFIXES = ['.tar', '.tar.gz', '.zip']


def contents(path):
  found = archives.open_files(str(path))
  return {name: archives.read(content) for name, content in found.items()}


def write(path, make, members):
  if path.suffix == '.zip':
    return make.write_zip(path, {'folder/': b'', **members})
  return make.write_tar(path, members, 'w:gz' if path.suffix == '.gz' else 'w')


def test_archives_and_folders_give_the_same_bytes(tmp_path, make):
  assert contents(make.tree(tmp_path / 'tree', FILES)) == FILES
  for suffix in SUFFIXES:
    assert contents(write(tmp_path / f'x{suffix}', make, FILES)) == FILES
  link = tarfile.TarInfo('link.tar')  # Links are not read.
  link.type, link.linkname = tarfile.SYMTYPE, 'x.tar'
  outer = {'x.tar': make.tar_bytes(FILES), 'link.tar': link, **FILES}
  inner = {f'x.tar/{name}': data for name, data in FILES.items()}
  assert contents(make.write_tar(tmp_path / 'o.tar', outer)) == FILES | inner


def test_a_set_is_found_by_itself_or_in_its_folder_or_named_missing(tmp_path):
  def find(source):
    return archives.find('cifar10', str(source), 'set.zip', 'set')

  missing = 'none of set.zip, set; give the files of .*kriz/cifar'
  for source, problem in ((tmp_path, missing), ('/x', 'not exist')):
    with pytest.raises(errors.DataError, match=f'{source}: .*{problem}'):
      find(source)
  (tmp_path / 'set').mkdir()
  for source in (tmp_path, f'{tmp_path}/set', f'{tmp_path}/set/'):
    assert find(source) == f'{tmp_path}/set'
  (tmp_path / 'set.zip').touch()
  assert find(tmp_path) == f'{tmp_path}/set.zip'


def test_only_the_official_file_is_taken_unless_told_otherwise(
  tmp_path, monkeypatch, capsys
):
  path = tmp_path / 'cifar-10-python.tar.gz'
  path.write_bytes(b'official')
  known = (8, f'md5:{hashlib.md5(b"official").hexdigest()}')
  monkeypatch.setitem(official.ARCHIVES, path.name, known)
  archives.verify(str(path), allow_partial=False)
  assert capsys.readouterr().err == f'{path}: verifying its checksum\n'
  for data, problem in (
    (b'OFFICIAL', 'md5 checksum'),
    (b'offic', 'has 5 bytes instead of 8'),
  ):
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=f'{problem}.*--allow_partial'):
      archives.verify(str(path), allow_partial=False)
    archives.verify(str(path), allow_partial=True)
    assert 'its contents are not verified' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_names_that_lead_outside_and_links_touch_nothing(
  tmp_path, make, suffix
):
  members = {'../../evil': b'x', f'{tmp_path}/evil': b'x', 'one.txt': b'1'}
  if suffix != '.zip':
    link = tarfile.TarInfo('link')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    members['link'] = link
  (tmp_path / 'in').mkdir()
  path = write(tmp_path / f'in/x{suffix}', make, members)
  assert sorted(contents(path).values()) == [b'1', b'x', b'x']
  assert os.listdir(tmp_path) == ['in']
  assert os.listdir(tmp_path / 'in') == [f'x{suffix}']


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_cut_and_damaged_archives_are_refused(tmp_path, make, suffix):
  path = tmp_path / f'x{suffix}'
  write(path, make, {'one.txt': os.urandom(9000), 'two.txt': b'2'})
  whole = path.read_bytes()
  bad = [whole[:cut] for cut in (0, 100, 3000, 9000)]
  bad.append(b'<html>not found</html>' * 100)
  if suffix != '.tar':  # It has no checksum.
    bad.append(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
  for data in bad:
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match=f'{path}: cannot be read'):
      contents(path)
  if suffix == '.tar':  # An inner one does not run on into what follows it.
    make.write_tar(path, {'y.tar': whole[:3000], 'z': whole})
    with pytest.raises(errors.DataError, match=r'y\.tar: cannot be read'):
      contents(path)


def test_damage_within_a_tar_is_not_taken_for_its_end(tmp_path, make):
  path = tmp_path / 'x.tar'
  damaged = bytearray(make.tar_bytes({'one.txt': b'1', 'two.txt': b'2'}))
  damaged[1024 + 3] ^= 0xFF  # In the name of the second member.
  path.write_bytes(damaged)
  with pytest.raises(errors.DataError, match=r'cannot be read.*at byte 1024'):
    contents(path)


def test_a_tar_that_shrank_is_refused(tmp_path, make):
  path = make.write_tar(tmp_path / 'x.tar', FILES)
  first = next(iter(archives.open_files(path).values()))
  os.truncate(path, 900)
  with pytest.raises(errors.DataError, match='388 of 700 bytes'):
    archives.read(first)
