"""Files in tars, zips and folders, found without extracting anything.

Nothing is ever written under a name that an archive gives. Still, links,
devices and names that point outside are refused: an official archive holds
none, so that one which does is not what it says it is.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import gzip
import os
import stat
import tarfile
from typing import BinaryIO
from typing import NamedTuple
import zipfile
import zlib

from lipnext_jax import errors
from lipnext_jax.data.formats import tars

MAX_BYTES = 256 << 20  # Of one file; CIFAR-100's largest pickle has 155 MB.
_UNREADABLE = (
  EOFError,
  NotImplementedError,  # A zip's compression method.
  OSError,
  RuntimeError,  # zipfile's, of encryption.
  ValueError,
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
)


class Entry(NamedTuple):
  """A file, and where its bytes lie."""

  name: str  # Within its archive or folder.
  path: str  # The file on disk: the archive, or the file itself.
  offset: int  # In bytes; of zip entries, which are found by name: −1.
  size: int  # In bytes.


def list_folder(path: str) -> list[Entry]:
  """The regular files right in a folder, by name; none deeper.

  Raises:
    DataError: a device, a pipe, or a link that leads nowhere.
  """
  entries = []
  with os.scandir(path) as scan:
    for item in sorted(scan, key=lambda item: item.name):
      entry = stat_file(item.path)
      if entry is not None:
        entries.append(entry._replace(name=item.name))
  return entries


def stat_file(path: str) -> Entry | None:
  """One file on disk as an entry; None for a folder.

  Raises:
    DataError: it is neither, or does not exist.

  >>> stat_file('/usr') is None
  True
  >>> stat_file('/dev/null')
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: /dev/null: is no regular file
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


def list_tar(path: str) -> list[Entry]:
  """The files in an uncompressed tar, in its order.

  Raises:
    DataError: the archive is damaged or cut off, holds links, devices or the
      same name twice, or a name that points outside of it.
  """

  def read_all():
    with open(path, 'rb') as file:
      return list(_members(file, path))

  return _guarded(path, read_all)


def list_tar_of_tars(
  path: str, progress: Callable[[], object] = lambda: None
) -> dict[str, list[Entry]]:
  """The files in the tars in a tar, by the name of the inner one.

  Args:
    path: the outer tar, uncompressed, as the inner ones are.
    progress: called after each inner tar.

  Raises:
    DataError: see `list_tar`.
  """

  def read_all():
    inner = {}
    for outer in list_tar(path):
      with open(path, 'rb') as file:
        window = _Window(file, outer.offset, outer.size)
        members = _members(window, f'{path}, {outer.name}')
        inner[outer.name] = [
          entry._replace(path=path, offset=outer.offset + entry.offset)
          for entry in members
        ]
      progress()
    return inner

  return _guarded(path, read_all)


def read_tar_gz(path: str, wanted: frozenset[str]) -> dict[str, bytes]:
  """Contents of the `wanted` file names in a compressed tar, wherever.

  Raises:
    DataError: see `list_tar`.
  """

  def read_all():
    found: dict[str, bytes] = {}
    with gzip.open(path) as stream:
      for member in tars.members(stream):
        if not _is_file(member, path):
          continue
        name = os.path.basename(member.name)
        if name in wanted:
          if name in found:
            raise errors.DataError(f'{path}: holds {name} twice')
          found[name] = stream.read(member.size)
          if len(found[name]) != member.size:
            raise EOFError(f'{name} is cut off')
      # Beyond the end mark of the tar stands gzip's checksum.
      while stream.read(1 << 20):
        pass
    return found

  return _guarded(path, read_all)


def list_zip(path: str) -> list[Entry]:
  """The files in a zip, in its order.

  Raises:
    DataError: see `list_tar`; or it is encrypted.
  """

  def read_all():
    entries, seen = [], set()
    for info in _open_zip(path).infolist():
      name = info.filename
      _check_name(path, name)
      kind = stat.S_IFMT(info.external_attr >> 16)
      if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise errors.DataError(f'{path}, {name}: is a link or a device')
      if name in seen:
        raise errors.DataError(f'{path}: holds {name} twice')
      seen.add(name)
      _check_size(path, name, info.file_size)
      if not info.is_dir():
        entries.append(Entry(name, path, -1, info.file_size))
    return entries

  return _guarded(path, read_all)


def read(entry: Entry) -> bytes:
  """The bytes of a file.

  Raises:
    DataError: they are not all there, or fail the zip's checksum.
  """

  def read_all():
    if entry.offset < 0:
      with _open_zip(entry.path).open(entry.name) as file:
        # To the end, and one further: only there zipfile checks the sum.
        return file.read(entry.size + 1)
    with open(entry.path, 'rb') as file:
      file.seek(entry.offset)
      return file.read(entry.size)

  where = describe(entry)
  data = _guarded(where, read_all)
  if len(data) != entry.size:
    raise errors.DataError(
      f'{where}: ends after {len(data)} of {entry.size} bytes'
    )
  return data


def describe(entry: Entry) -> str:
  """The file, as messages name it.

  >>> describe(Entry('a.jpg', '/data/a.tar', 512, 9))
  '/data/a.tar, a.jpg'
  >>> describe(Entry('a.jpg', '/data/a.jpg', 0, 9))
  '/data/a.jpg'
  """
  if os.path.basename(entry.path) == entry.name:
    return entry.path
  return f'{entry.path}, {entry.name}'


class _Window:
  """A part of a file as a file of its own, for `tars`."""

  def __init__(self, file: BinaryIO, offset: int, size: int):
    self._file, self._offset, self._size = file, offset, size
    self._position = 0

  def tell(self) -> int:
    return self._position

  def seek(self, position: int) -> int:
    self._position = position
    return position

  def read(self, size: int) -> bytes:
    size = max(0, min(size, self._size - self._position))
    self._file.seek(self._offset + self._position)
    data = self._file.read(size)
    self._position += len(data)
    return data


def _members(file: tars.Stream, path: str) -> Iterator[Entry]:
  seen = set()
  for member in tars.members(file):
    if not _is_file(member, path):
      continue
    name = member.name.removeprefix('./')
    if name in seen:
      raise errors.DataError(f'{path}: holds {name} twice')
    seen.add(name)
    yield Entry(name, path, member.offset, member.size)


def _is_file(member: tars.Member, path: str) -> bool:
  _check_name(path, member.name)
  if member.is_folder:
    return False
  if not member.is_file:
    raise errors.DataError(f'{path}, {member.name}: is a link or a device')
  # Inner tars are longer: `read` is only asked for what is in them.
  if not member.name.endswith('.tar'):
    _check_size(path, member.name, member.size)
  return True


def _check_name(path: str, name: str) -> None:
  if not name:
    raise errors.DataError(f'{path}: holds a file without a name')
  parts = name.replace('\\', '/').split('/')
  if name.startswith(('/', '\\')) or '..' in parts or ':' in parts[0]:
    raise errors.DataError(f'{path}: holds {name!r}, a name that leads outside')


def _check_size(path: str, name: str, size: int) -> None:
  if size > MAX_BYTES:
    raise errors.DataError(
      f'{path}, {name}: has {size} bytes, more than {MAX_BYTES}: a bomb?'
    )


def _guarded(where: str, function):
  """Whatever goes wrong in an archive, as an error that names it."""
  try:
    return function()
  except errors.DataError:
    raise
  except _UNREADABLE as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.DataError(f'{where}: cannot be read ({reason})') from None


def _open_zip(path: str) -> zipfile.ZipFile:
  status = os.stat(path)
  return _keep_zip(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=2)
def _keep_zip(path: str, *version: int) -> zipfile.ZipFile:
  """Kept open: listing Tiny-ImageNet's 120,000 entries takes a second."""
  del version  # Of the file: another one has another list.
  return zipfile.ZipFile(path)
