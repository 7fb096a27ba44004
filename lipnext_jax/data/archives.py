"""Reads the files of official sets, in archives or in extracted folders.

Nothing is extracted, so that no name in an archive decides where a file is
written. Checksums identify official archives. Others are used only if the user
allows it. Every function raises a `DataError` that names the file if it is
missing, damaged or cut off.
"""

from collections.abc import Iterator
import contextlib
import gzip
import hashlib
import io
import os
import sys
import tarfile
from typing import IO
from typing import NamedTuple
import zipfile

import tqdm

from lipnext_jax import errors
from lipnext_jax.data import folder
from lipnext_jax.data import official


class Entry(NamedTuple):
  """The location of a file on disk or in a tar."""

  name: str  # Path of the tar, if any, followed by the path within it.
  path: str  # Path of the file or tar on disk.
  offset: int  # In bytes.
  size: int  # In bytes.


Content = Entry | bytes  # Of a file.


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
  """Turns errors of an archive into a DataError that names it."""
  try:
    yield
  except errors.DataError:
    raise
  except Exception as error:  # tarfile and zipfile raise many kinds.
    raise errors.DataError(
      f'{where}: cannot be read ({errors.one_line(error)})'
    ) from None


def find(set_name: str, source: str, *files: str) -> str:
  """Returns the path of the first file of a set that `source` is or holds.

  >>> find('cifar10', '/', 'x.zip', 'x')
  Traceback (most recent call last):
  lipnext_jax.errors.DataError: --source=/: is or holds none of x.zip, x; ...
  """
  source = os.path.normpath(source)
  if not os.path.exists(source):
    raise errors.DataError(f'--source={source}: does not exist')
  for file in files:
    if os.path.basename(source) == file:
      return source
    path = os.path.join(source, file)
    if os.path.exists(path):
      return path
  facts = official.SETS[set_name]
  raise errors.DataError(
    f'--source={source}: is or holds none of {", ".join(files)}; give the '
    f'files of {facts.origin or facts.homepage}'
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
  if os.path.basename(path) not in official.ARCHIVES:
    raise errors.DataError(f'{path}: is not a folder')
  size, checksum = official.ARCHIVES[os.path.basename(path)]
  algorithm, _, wanted = checksum.partition(':')
  if (found := os.path.getsize(path)) != size:
    problem = f'has {found} bytes instead of {size}'
  else:
    print(f'{path}: verifying its checksum', file=sys.stderr)
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, algorithm).hexdigest()
    if digest == wanted:
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


def open_files(path: str) -> dict[str, Content]:
  """Returns the files of a folder or archive by their paths within it.

  Tars in a tar are taken for folders. The files of .tar.gz and .zip archives
  are read into memory.
  """
  if os.path.isdir(path):
    return {
      os.path.relpath(file, path): Entry(file, file, 0, os.path.getsize(file))
      for file in folder.list_files(path)
    }
  with naming(path):
    if path.endswith('.zip'):
      with zipfile.ZipFile(path) as archive:
        return {
          info.filename: archive.read(info)
          for info in archive.infolist()
          if not info.is_dir()
        }
    if path.endswith('.gz'):
      with gzip.open(path) as packed:
        data = packed.read()
      entries = _list_tar(path, io.BytesIO(data))
      return {name: data[at : at + size] for name, at, size in entries}
    with open(path, 'rb') as file:
      entries = _list_tar(path, file)
      # ImageNet's 1.28 million headers take a minute or two.
      bar = tqdm.tqdm(entries, 'listing', unit=' files', delay=1)
      return {
        name: Entry(f'{path}/{name}', path, at, size) for name, at, size in bar
      }


def read(content: Content) -> bytes:
  """Reads the bytes of a file."""
  if isinstance(content, bytes):
    return content
  with naming(content.name), open(content.path, 'rb') as file:
    file.seek(content.offset)
    data = file.read(content.size)
  if len(data) != content.size:
    raise errors.DataError(
      f'{content.name}: ends after {len(data)} of {content.size} bytes'
    )
  return data


def _list_tar(where: str, file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
  """Yields name, offset and size of the regular files of a tar."""
  with naming(where), tarfile.open(fileobj=file, mode='r:') as tar:
    for member in tar:
      name, start = member.name, member.offset_data
      if member.isreg() and name.endswith('.tar'):
        inner = tar.extractfile(member)
        assert inner is not None  # It is a regular file.
        for inside, offset, size in _list_tar(f'{where}/{name}', inner):
          yield f'{name}/{inside}', start + offset, size
      elif member.isreg():
        yield name, start, member.size
    # tarfile takes a damaged header for the end of the archive.
    file.seek(tar.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
      raise tarfile.ReadError(f'damaged at byte {tar.offset}')
