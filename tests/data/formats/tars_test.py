"""What tarfile finds in tars of all kinds, and none of what it falls for."""

import gzip
import io
import tarfile
import time
import tracemalloc

import pytest

from lipnext_jax import errors
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import tars

FILES = {
  'short.txt': b'1' * 512,
  'empty': b'',
  'a/' + 'deep/' * 40 + 'long.txt': b'2' * 700,
  'ünïcode/\u4f60\u597d.txt': b'3',
  'n' * 99: b'4',
  'n' * 100: b'5',
  'n' * 101: b'6',
  'last': b'7' * 1024,
}


def make_tar(files, kind, mode='w'):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode, format=kind) as tar:
    folder = tarfile.TarInfo('folder')
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      info.mtime = 1.5  # So that pax has a header for every file.
      tar.addfile(info, io.BytesIO(data))
  return file.getvalue()


KINDS = {'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}


@pytest.mark.parametrize('kind', KINDS)
def test_what_tarfile_finds_is_found(kind):
  data = make_tar(FILES, KINDS[kind])
  with tarfile.open(fileobj=io.BytesIO(data)) as tar:
    wanted = [
      (m.name, m.offset_data, m.size, m.isreg(), m.isdir()) for m in tar
    ]
  assert len(wanted) == len(FILES) + 1
  assert [tuple(m) for m in tars.members(io.BytesIO(data))] == wanted


@pytest.mark.parametrize('kind', KINDS)
def test_contents_are_read_in_passing_and_from_compressed_tars(kind, tmp_path):
  data = make_tar(FILES, KINDS[kind])
  file = io.BytesIO(data)
  found = {m.name: file.read(m.size) for m in tars.members(file)}
  assert found == {'folder': b''} | FILES
  path = tmp_path / 'x.tar.gz'
  path.write_bytes(gzip.compress(data))
  assert archives.read_tar_gz(str(path), frozenset(['long.txt', 'last'])) == {
    'long.txt': b'2' * 700,
    'last': b'7' * 1024,
  }


def test_a_tar_may_end_in_zeros_or_without_them():
  data = make_tar({'a': b'1'}, tarfile.GNU_FORMAT)
  assert not any(data[1536:])
  for end in (1536, 1700, 2048, len(data)):
    assert len(list(tars.members(io.BytesIO(data[:end])))) == 2
  assert not list(tars.members(io.BytesIO(bytes(1024))))


def header(kind, size, name='x'):
  info = tarfile.TarInfo(name)
  info.type, info.size = kind, size
  return info.tobuf(tarfile.GNU_FORMAT)


def extended(kind, content):
  padding = bytes(-len(content) % 512)
  return header(kind, len(content)) + content + padding


def pax(**fields):
  records = b''
  for key, value in fields.items():
    rest = f' {key.replace("__", ".")}={value}\n'.encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
      length = len(str(length)) + len(rest)
    records += str(length).encode() + rest
  return extended(tarfile.XHDTYPE, records)


FILE = header(tarfile.REGTYPE, 3, 'file') + b'abc'.ljust(512, b'\0')
L, K, X, G = (
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
)
SPARSE = tarfile.GNUTYPE_SPARSE
HOSTILE = {
  'nothing': b'',
  'text': b'<html>' * 200,
  'a cut header': FILE[:300],
  'cut contents': FILE[:900],
  'a damaged header': FILE + b'x' + FILE[1:],
  'nothing after a long name': extended(L, b'name') + bytes(1024),
  'a cut long name': header(L, 700) + b'n' * 600,
  'a huge long name': header(L, (1 << 20) + 1) + FILE,
  'a huge long link': header(K, 1 << 40) + FILE,
  'a huge pax header': header(X, (1 << 20) + 1) + FILE,
  'a huge global header': header(G, 1 << 33) + FILE,
  'a long name of negative size': header(L, -512) + FILE,
  # The next header would be this one again.
  'a file of negative size': header(tarfile.REGTYPE, -512) + FILE,
  'a pax header of no records': extended(X, b'rubbish') + FILE,
  'a pax record too long': extended(X, b'99 path=x\n') + FILE,
  'a pax record too short': extended(X, b'3 path=x\n') + FILE,
  'a pax record of length zero': extended(X, b'0 path=x\n') + FILE,
  'a pax record without an end': extended(X, b'9 path=xy') + FILE,
  'a pax size of letters': pax(size='many') + FILE,
  'a pax size below zero': pax(size=-512) + FILE,
  'one name for all': extended(G, b'10 path=x\n') + FILE,
  'a sparse file of pax': pax(GNU__sparse__major=1) + FILE,
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_headers_are_refused(case):
  with pytest.raises(tarfile.TarError):
    list(tars.members(io.BytesIO(HOSTILE[case])))


def test_a_sparse_file_is_no_file():
  (member,) = tars.members(io.BytesIO(header(SPARSE, 0) + bytes(1024)))
  assert not member.is_file
  assert not member.is_folder


def test_a_comment_for_all_members_is_passed_over():
  """`git archive` writes one."""
  data = extended(G, b'14 comment=ab\n') + pax(path='new', size=3) + FILE
  (member,) = tars.members(io.BytesIO(data))
  assert member == tars.Member('new', 2560, 3, is_file=True, is_folder=False)


def checksummed(block):
  total = sum(block[:148]) + 8 * 32 + sum(block[156:])
  return block[:148] + b'%06o\0 ' % total + block[156:]


@pytest.mark.parametrize('case', ['a long name', 'a pax header'])
def test_a_bomb_of_extension_headers_takes_no_memory(tmp_path, case):
  """600 MiB in a file of a few."""
  kind = L if case == 'a long name' else X
  path = tmp_path / 'x.tar.gz'
  with gzip.open(path, 'wb', compresslevel=1) as file:
    file.write(header(kind, 600 << 20))
    for _ in range(600):
      file.write(bytes(1 << 20))
  assert path.stat().st_size < 4 << 20
  tracemalloc.start()
  with pytest.raises(errors.DataError, match='a bomb'):
    archives.read_tar_gz(str(path), frozenset(['x']))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def test_a_sparse_map_is_not_followed(tmp_path):
  block = header(SPARSE, 0)
  first = checksummed(block[:482] + b'\1' + block[483:])
  more = (b'%011o\0' % 1 * 42).ljust(504, b'\0') + b'\1'.ljust(8, b'\0')
  path = tmp_path / 'x.tar.gz'
  path.write_bytes(gzip.compress(first + more * 100_000, 1))
  tracemalloc.start()
  with pytest.raises(errors.DataError, match='link or a device'):
    archives.read_tar_gz(str(path), frozenset(['x']))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


@pytest.mark.parametrize(
  'content',
  [
    b'1' * (1 << 20),  # Half an hour in tarfile's search for 'hdrcharset'.
    b'3 a' * 340_000,  # A tenth of a terabyte of keys.
    b'5 a=\n' * 200_000 + b'rubbish',
  ],
  ids=['digits', 'keys', 'records'],
)
def test_a_pax_header_is_read_once(content):
  start = time.monotonic()
  with pytest.raises(tarfile.TarError, match='malformed'):
    list(tars.members(io.BytesIO(extended(X, content) + FILE)))
  assert time.monotonic() - start < 5


def test_many_headers_of_all_members_leave_nothing_behind():
  """tarfile keeps them, and a copy with every member."""
  records = b''.join(b'11 k%05d=\n' % i for i in range(9000))
  data = extended(G, records) + FILE * 500
  tracemalloc.start()
  assert sum(1 for _ in tars.members(io.BytesIO(data))) == 500
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2 << 20
