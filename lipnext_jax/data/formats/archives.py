"""Reads files in tars, zips and folders in place.

Nothing is extracted, so that no name in an archive decides where a file is
written. Checksums identify official archives. Others are used only if the user
allows it.
"""

from collections.abc import Iterator
import contextlib
import functools
import gzip
import hashlib
import os
import stat
import sys
import tarfile
from typing import NamedTuple
import zipfile
import zlib

from lipnext_jax import errors
from lipnext_jax.data import official

MAX_BYTES = 256 << 20  # Per file; CIFAR-100's largest batch has 155 MB.
_LARGE = 1 << 30  # Bytes; verifying a larger archive takes a while.
# Errors that tarfile and zipfile raise for damaged archives.
_UNREADABLE = (
  EOFError,
  LookupError,
  NotImplementedError,  # An unknown compression method of a zip.
  OSError,
  OverflowError,
  RuntimeError,  # An encrypted zip.
  ValueError,
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
)


class Entry(NamedTuple):
  """The location of a file."""

  name: str  # Path within the archive or folder.
  path: str  # Path of the archive, or of the file in a folder.
  offset: int  # In bytes; −1 for zip entries, which are found by name.
  size: int  # In bytes.


def verify(path: str, *, allow_partial: bool) -> None:
  """Checks that an archive is the official file of its name.

  Args:
    path: an archive in `official.ARCHIVES`, or an extracted folder, for which
      no checksum is known.
    allow_partial: whether to accept another file, with a message on stderr.

  Raises:
    DataError: the file is not the official one, or cannot be read.
  """
  if os.path.isdir(path):
    print(
      f'{path}: an extracted folder, whose files have no known checksums',
      file=sys.stderr,
    )
    return
  archive = official.ARCHIVES[os.path.basename(path)]
  with _naming(path):
    size = os.stat(path).st_size
    if size != archive.size:
      problem = f'has {size} bytes instead of {archive.size}'
    else:
      if size > _LARGE:
        print(f'{path}: checking {size >> 30} GiB', file=sys.stderr)
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, archive.algorithm).hexdigest()
      if digest == archive.checksum:
        return
      problem = f'has the {archive.algorithm} checksum {digest}'
  refuse(path, problem, allow_partial=allow_partial)


def refuse(path: str, problem: str, *, allow_partial: bool) -> None:
  """Refuses a file that is not the official one.

  Args:
    path: path of the file.
    problem: difference to the official file.
    allow_partial: whether to accept it, with a message on stderr.

  Raises:
    DataError: the file is not accepted.
  """
  if not allow_partial:
    raise errors.DataError(
      f'{path}: {problem}, so it is not the official file; fetch it again, or '
      'take what is there with --allow_partial'
    )
  print(f'{path}: {problem}: its contents are not verified', file=sys.stderr)


def stat_file(path: str) -> Entry | None:
  """Returns the entry of a file on disk, or None for a folder.

  Raises:
    DataError: the path does not exist, or is a device or pipe.
  """
  try:
    status = os.stat(path)
  except OSError as error:
    raise errors.DataError(f'{path}: {error.strerror}') from None
  if stat.S_ISDIR(status.st_mode):
    return None
  if not stat.S_ISREG(status.st_mode):  # Reading a pipe would never end.
    raise errors.DataError(f'{path}: is not a regular file')
  return Entry(os.path.basename(path), path, 0, status.st_size)


def list_folder(path: str) -> list[Entry]:
  """Lists the files in a folder by name, without subfolders.

  Raises:
    DataError: the folder holds a device, a pipe, or a broken link.
  """
  entries = [stat_file(os.path.join(path, n)) for n in sorted(os.listdir(path))]
  return [entry for entry in entries if entry is not None]


def list_tar(path: str, outer: Entry | None = None) -> list[Entry]:
  """Lists the files of an uncompressed tar, in its order.

  Args:
    path: path of the tar on disk.
    outer: a member of this tar that is the tar to be listed, or None.

  Raises:
    DataError: the tar is damaged or cut off, or holds a link, a device, a name
      twice, or a name that leads outside of it.
  """
  where = path if outer is None else describe(outer)
  with _naming(where), open(path, 'rb') as file:
    file.seek(outer.offset if outer else 0)
    with tarfile.open(fileobj=file, mode='r:') as tar:
      entries = [
        Entry(m.name, path, m.offset_data, m.size) for m in _members(tar, where)
      ]
      if outer and tar.offset > outer.offset + outer.size:
        raise errors.DataError(f'{where}: cannot be read (it is cut off)')
  return entries


def read_tar_gz(path: str, wanted: frozenset[str]) -> dict[str, bytes]:
  """Reads the files named `wanted` from any folder of a compressed tar.

  Raises:
    DataError: see `list_tar`.
  """
  found: dict[str, bytes] = {}
  with _naming(path), tarfile.open(path, 'r:gz') as tar:
    for member in _members(tar, path):
      name = os.path.basename(member.name)
      if name not in wanted:
        continue
      if name in found:
        raise errors.DataError(f'{path}: holds {name} twice')
      _check_size(f'{path}, {name}', member.size)
      file = tar.extractfile(member)
      assert file is not None  # It is a regular file.
      found[name] = file.read()
    # Read to the end, where gzip verifies its checksum.
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):
      pass
  return found


def list_zip(path: str) -> list[Entry]:
  """Lists the files of a zip, in its order.

  Raises:
    DataError: see `list_tar`.
  """
  entries, seen = [], set[str]()
  _open_zip.cache_clear()  # The file may have changed.
  with _naming(path):
    for info in _open_zip(path).infolist():
      _check_name(path, info.filename, seen)
      kind = stat.S_IFMT(info.external_attr >> 16)
      if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise errors.DataError(f'{path}, {info.filename}: is a link or device')
      if not info.is_dir():
        entries.append(Entry(info.filename, path, -1, info.file_size))
  return entries


def read(entry: Entry) -> bytes:
  """Reads the bytes of a file.

  Raises:
    DataError: the file is too large, cut off, or fails the checksum of its zip.
  """
  where = describe(entry)
  _check_size(where, entry.size)
  with _naming(where):
    if entry.offset < 0:
      with _open_zip(entry.path).open(entry.name) as file:
        # zipfile verifies the checksum at the end: one byte more than the file.
        data = file.read(entry.size + 1)
    else:
      with open(entry.path, 'rb') as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
  if len(data) != entry.size:
    raise errors.DataError(
      f'{where}: ends after {len(data)} of {entry.size} bytes'
    )
  return data


def read_gz(path: str, limit: int) -> bytes:
  """Decompresses a gzip file.

  Args:
    path: path of the file.
    limit: largest number of bytes to be decompressed.

  Raises:
    DataError: the file has more bytes, or is damaged or cut off.
  """
  with _naming(path), gzip.open(path) as file:
    # gzip verifies its checksum at the end: one byte more than the contents.
    data = file.read(limit + 1)
  if len(data) > limit:
    raise errors.DataError(f'{path}: holds more than {limit} bytes')
  return data


def describe(entry: Entry) -> str:
  """Returns the name of a file for messages.

  >>> describe(Entry('a.jpg', '/data/a.tar', 512, 9))
  '/data/a.tar, a.jpg'
  >>> describe(Entry('a.jpg', '/data/a.jpg', 0, 9))
  '/data/a.jpg'
  """
  if os.path.basename(entry.path) == entry.name:
    return entry.path
  return f'{entry.path}, {entry.name}'


def _members(tar: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
  """Yields the regular files of a tar; raises for links, devices and damage."""
  seen = set[str]()
  for member in tar:
    member.name = member.name.removeprefix('./')
    _check_name(where, member.name, seen)
    if member.isdir():
      continue
    if not member.isreg() or member.issparse():
      raise errors.DataError(f'{where}, {member.name}: is a link or device')
    if member.size < 0:  # An endless loop: the next header is an earlier one.
      raise tarfile.ReadError(f'{member.name} has {member.size} bytes')
    yield member
  # tarfile takes a damaged header for the end of the archive.
  assert tar.fileobj is not None
  tar.fileobj.seek(tar.offset)
  if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
    raise errors.DataError(f'{where}: is damaged at byte {tar.offset}')


def _check_name(where: str, name: str, seen: set[str]) -> None:
  """Checks that a name is new and leads nowhere outside; adds it to `seen`."""
  if not name:
    raise errors.DataError(f'{where}: holds a file without a name')
  parts = name.replace('\\', '/').split('/')
  if name.startswith(('/', '\\')) or '..' in parts or ':' in parts[0]:
    raise errors.DataError(f'{where}: holds {name!r}, which leads outside')
  if name in seen:
    raise errors.DataError(f'{where}: holds {name} twice')
  seen.add(name)


def _check_size(where: str, size: int) -> None:
  if size > MAX_BYTES:
    raise errors.DataError(f'{where}: has {size} bytes, more than {MAX_BYTES}')


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Turns errors of an archive into a DataError that names it."""
  try:
    yield
  except _UNREADABLE as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.DataError(f'{where}: cannot be read ({reason})') from None


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
  # Kept open: listing the 120,000 files of Tiny-ImageNet takes a second.
  return zipfile.ZipFile(path)
