"""Reads the files of official sets, in archives or in extracted folders.

Nothing is extracted, so that no name in an archive decides where a file is
written. Checksums identify official archives. Others are used only if the user
allows it. Every function raises a `DataError` that names the file if it is
missing, damaged, cut off, or too large.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import glob
import gzip
import hashlib
import os
import stat
import sys
import tarfile
from typing import NamedTuple
import zipfile

import tqdm

from lipnext_jax import errors
from lipnext_jax.data import official

MAX_BYTES = 256 << 20  # Per file; ImageNet's largest image has 15 MB.


class Entry(NamedTuple):
  """The location of a file on disk or in a tar."""

  name: str  # Path of the tar, if any, followed by the path within it.
  path: str  # Path of the file or tar on disk.
  offset: int  # In bytes.
  size: int  # In bytes.


def find(source: str, *names: str) -> str:
  """Returns the path of the first of `names` that `source` is or holds.

  >>> find('/', 'x.zip', 'x')
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/: is or holds none of x.zip, x
  """
  source = os.path.normpath(source)
  if not os.path.exists(source):
    raise errors.DataError(f'--source={source}: does not exist')
  for name in names:
    if os.path.basename(source) == name:
      return source
    path = os.path.join(source, name)
    if os.path.exists(path):
      return path
  raise errors.DataError(
    f'--source={source}: is or holds none of {", ".join(names)}'
  )


def verify(path: str, *, allow_partial: bool) -> None:
  """Checks that an archive is the official file of its name.

  Args:
    path: an archive in `official.ARCHIVES`, or an extracted folder, for which
      no checksum is known.
    allow_partial: whether to accept another file, with a message on stderr.
  """
  if os.path.isdir(path):
    print(
      f'{path}: an extracted folder, whose files have no known checksums',
      file=sys.stderr,
    )
    return
  size, algorithm, checksum = official.ARCHIVES[os.path.basename(path)]
  with _naming(path):
    found = os.stat(path).st_size
    if found != size:
      problem = f'has {found} bytes instead of {size}'
    else:
      print(f'{path}: verifying its checksum', file=sys.stderr)
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
      if digest == checksum:
        return
      problem = f'has the {algorithm} checksum {digest}'
  refuse(path, problem, allow_partial=allow_partial)


def refuse(path: str, problem: str, *, allow_partial: bool) -> None:
  """Refuses a file that is not the official one, or says that it is taken."""
  if not allow_partial:
    raise errors.DataError(
      f'{path}: {problem}, so it is not the official file; fetch it again, or '
      'take what is there with --allow_partial'
    )
  print(f'{path}: {problem}: its contents are not verified', file=sys.stderr)


def stat_file(path: str) -> Entry:
  """Returns the entry of a regular file on disk."""
  try:
    status = os.stat(path)
  except OSError as error:
    raise errors.DataError(f'{path}: {error.strerror}') from None
  if not stat.S_ISREG(status.st_mode):  # Reading a pipe would never end.
    raise errors.DataError(f'{path}: is not a regular file')
  return Entry(path, path, 0, status.st_size)


def list_folder(path: str) -> list[Entry]:
  """Lists the files with an extension below a folder, by path."""
  names = glob.iglob('**/*.*', root_dir=path, recursive=True)
  return [stat_file(os.path.join(path, name)) for name in sorted(names)]


def list_tar(path: str) -> list[Entry]:
  """Lists the files of an uncompressed tar, and of the tars in it, in order."""
  entries = []
  with _naming(path), tarfile.open(path, 'r:') as tar:
    # ImageNet's 1.28 million headers take a minute or two.
    for member in tqdm.tqdm(_files(tar), 'listing', unit=' files', delay=1):
      name = f'{path}/{member.name}'
      start = member.offset_data
      if not name.endswith('.tar'):
        entries.append(Entry(name, path, start, member.size))
        continue
      with (
        _naming(name),
        tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner,
      ):
        entries += [
          Entry(f'{name}/{m.name}', path, start + m.offset_data, m.size)
          for m in _files(inner)
        ]
  return entries


def read_files(path: str, names: Sequence[str]) -> dict[str, bytes]:
  """Reads files from a folder, or from any folder of a compressed tar."""
  if os.path.isdir(path):
    return {name: read(stat_file(os.path.join(path, name))) for name in names}
  found = {}
  with _naming(path), tarfile.open(path, 'r:gz') as tar:
    for member in _files(tar):
      file = tar.extractfile(member)
      if file and (name := os.path.basename(member.name)) in names:
        found[name] = file.read()
    # gzip verifies its checksum at the end, behind that of the tar.
    while tar.fileobj and tar.fileobj.read(1 << 20):
      pass
  for name in names:
    if name not in found:
      raise errors.DataError(f'{path}: holds no {name}')
  return found


def read_zip(path: str) -> dict[str, bytes]:
  """Reads the files of a zip, by their path within it."""
  with _naming(path), zipfile.ZipFile(path) as archive:
    return {
      info.filename: archive.read(info)
      for info in archive.infolist()
      if not info.is_dir()
    }


def read(entry: Entry) -> bytes:
  """Reads the bytes of a file."""
  if entry.size > MAX_BYTES:
    raise errors.DataError(
      f'{entry.name}: has {entry.size} bytes, more than {MAX_BYTES}'
    )
  with _naming(entry.name), open(entry.path, 'rb') as file:
    file.seek(entry.offset)
    data = file.read(entry.size)
  if len(data) != entry.size:
    raise errors.DataError(
      f'{entry.name}: ends after {len(data)} of {entry.size} bytes'
    )
  return data


def read_gz(path: str) -> bytes:
  """Decompresses a gzip file."""
  with _naming(path), gzip.open(path) as file:
    # gzip verifies its checksum at the end: one byte more than the contents.
    data = file.read(MAX_BYTES + 1)
  if len(data) > MAX_BYTES:
    raise errors.DataError(f'{path}: holds more than {MAX_BYTES} bytes')
  return data


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  """Yields the regular files of a tar; raises at a damaged header.

  tarfile takes a damaged header for the end of the archive.
  """
  for member in tar:
    if member.size < 0:  # An endless loop: the next header is an earlier one.
      raise tarfile.ReadError(f'{member.name} has {member.size} bytes')
    if member.isreg():
      yield member
  assert tar.fileobj is not None  # The tar is open.
  tar.fileobj.seek(tar.offset)
  if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
    raise tarfile.ReadError(f'damaged at byte {tar.offset}')


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  """Turns errors of an archive into a DataError that names it."""
  try:
    yield
  except errors.DataError:
    raise
  except Exception as error:  # tarfile and zipfile raise many kinds.
    raise errors.DataError(
      f'{where}: cannot be read ({errors.one_line(error)})'
    ) from None
