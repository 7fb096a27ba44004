"""Files in tars, zips and folders, read where they lie.

Nothing is extracted, so that no name in an archive decides where something is
written. Official archives are recognised by their checksums; what another
archive holds is taken only if the user says so.
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
_LARGE = 1 << 30  # Bytes; checking a larger archive is announced.
# What tarfile and zipfile raise for damaged archives.
_UNREADABLE = (
  EOFError,
  LookupError,
  NotImplementedError,  # A zip's compression method.
  OSError,
  OverflowError,
  RuntimeError,  # zipfile's, for encryption.
  ValueError,
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
)


class Entry(NamedTuple):
  """A file, and where its bytes lie."""

  name: str  # Within its archive or folder.
  path: str  # The file on disk: the archive, or the file itself.
  offset: int  # In bytes; −1 for zip entries, which are found by name.
  size: int  # In bytes.


def verify(path: str, *, allow_partial: bool) -> None:
  """Checks that an archive is the official file of its name.

  Args:
    path: an archive in `official.ARCHIVES`, or an extracted folder, for which
      no checksum is known.
    allow_partial: report another file on stderr instead of refusing it.

  Raises:
    DataError: the file is another one, or cannot be read.
  """
  if os.path.isdir(path):
    _report(f'{path}: an extracted folder, whose files have no known checksums')
    return
  archive = official.ARCHIVES[os.path.basename(path)]
  with _naming(path):
    size = os.stat(path).st_size
    if archive.size not in (None, size):
      problem = f'has {size} bytes instead of {archive.size}'
    else:
      if size > _LARGE:
        _report(f'{path}: checking {size >> 30} GiB')
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, archive.algorithm).hexdigest()
      if digest == archive.checksum:
        return
      problem = f'has the {archive.algorithm} checksum {digest}'
  refuse(path, problem, allow_partial=allow_partial)


def refuse(path: str, problem: str, *, allow_partial: bool) -> None:
  """Refuses a file that is not the official one.

  Args:
    path: of the file.
    problem: what differs.
    allow_partial: report the file on stderr instead.

  Raises:
    DataError: unless `allow_partial`.
  """
  if not allow_partial:
    raise errors.DataError(
      f'{path}: {problem}, so it is not the official file; fetch it again, or '
      'take what is there with --allow_partial'
    )
  _report(f'{path}: {problem}: its contents are not verified')


def stat_file(path: str) -> Entry | None:
  """Describes one file on disk as an entry; returns None for a folder.

  Raises:
    DataError: it is neither, or does not exist.
  """
  try:
    status = os.stat(path)
  except OSError as error:
    raise errors.DataError(f'{path}: {error.strerror}') from None
  if stat.S_ISDIR(status.st_mode):
    return None
  if not stat.S_ISREG(status.st_mode):  # Reading a pipe would never end.
    raise errors.DataError(f'{path}: is no regular file')
  return Entry(os.path.basename(path), path, 0, status.st_size)


def list_folder(path: str) -> list[Entry]:
  """Lists the regular files right in a folder, by name; none deeper.

  Raises:
    DataError: a device, a pipe, or a link that leads nowhere.
  """
  entries = [stat_file(os.path.join(path, n)) for n in sorted(os.listdir(path))]
  return [entry for entry in entries if entry is not None]


def list_tar(path: str, outer: Entry | None = None) -> list[Entry]:
  """Lists the files of an uncompressed tar, in its order.

  Args:
    path: the file on disk.
    outer: the member of that file that is the tar to list; None: the file
      itself is.

  Raises:
    DataError: the archive is damaged or cut off, holds links, devices or the
      same name twice, or a name that points outside of it.
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
  """Reads the files called `wanted` in a compressed tar, in any folder.

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
    # Beyond the end mark of the tar stands gzip's checksum.
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):
      pass
  return found


def list_zip(path: str) -> list[Entry]:
  """Lists the files of a zip, in its order.

  Raises:
    DataError: see `list_tar`.
  """
  entries, seen = [], set[str]()
  _open_zip.cache_clear()  # The file may be another one by now.
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
    DataError: they are too many, are not all there, or fail the checksum of
      the zip.
  """
  where = describe(entry)
  _check_size(where, entry.size)
  with _naming(where):
    if entry.offset < 0:
      with _open_zip(entry.path).open(entry.name) as file:
        # zipfile checks the sum at the end of the file, which is one further.
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
    path: of the file.
    limit: bytes that it may hold; no more are decompressed.

  Raises:
    DataError: it holds more, is damaged or cut off.
  """
  with _naming(path), gzip.open(path) as file:
    # gzip checks its sum at the end of the file, which is one byte further.
    data = file.read(limit + 1)
  if len(data) > limit:
    raise errors.DataError(f'{path}: holds more than {limit} bytes')
  return data


def describe(entry: Entry) -> str:
  """Names a file for messages.

  >>> describe(Entry('a.jpg', '/data/a.tar', 512, 9))
  '/data/a.tar, a.jpg'
  >>> describe(Entry('a.jpg', '/data/a.jpg', 0, 9))
  '/data/a.jpg'
  """
  if os.path.basename(entry.path) == entry.name:
    return entry.path
  return f'{entry.path}, {entry.name}'


def _members(tar: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
  """Yields the regular files of a tar; refuses links, devices and damage."""
  seen = set[str]()
  for member in tar:
    member.name = member.name.removeprefix('./')
    _check_name(where, member.name, seen)
    if member.isdir():
      continue
    if not member.isreg() or member.issparse():
      raise errors.DataError(f'{where}, {member.name}: is a link or device')
    if member.size < 0:  # The next header would be an earlier one, for ever.
      raise tarfile.ReadError(f'{member.name} has {member.size} bytes')
    yield member
  # A damaged header ends the loop, too: tarfile takes it for the end mark.
  assert tar.fileobj is not None
  tar.fileobj.seek(tar.offset)
  if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
    raise errors.DataError(f'{where}: is damaged at byte {tar.offset}')


def _check_name(where: str, name: str, seen: set[str]) -> None:
  """Refuses names that point outside and those in `seen`; adds the name."""
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
    raise errors.DataError(
      f'{where}: has {size} bytes, more than {MAX_BYTES}: a bomb?'
    )


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Turns what goes wrong in an archive into an error that names it."""
  try:
    yield
  except _UNREADABLE as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.DataError(f'{where}: cannot be read ({reason})') from None


def _report(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
  # Kept open: reading the list of Tiny-ImageNet's 120,000 files takes a second.
  return zipfile.ZipFile(path)
