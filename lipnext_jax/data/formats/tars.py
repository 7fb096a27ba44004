"""The members of a tar, one header after the other, in bounded memory.

`tarfile` follows an archive wherever it leads: it reads extension headers
whole, whatever size they claim, keeps every header it has seen, and looks for
fields with patterns that take hours on a header of digits. Here it decodes
single headers, of 512 bytes; what lies between them is followed with limits.
"""

from collections.abc import Iterator
import re
import tarfile
from typing import NamedTuple
from typing import Protocol

MAX_EXTENSION = 1 << 20  # Bytes; a path has 4096 at most.
_BLOCK = 512  # Everything in a tar starts at a multiple of it.
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
# Sparse files are longer than what is stored of them, and are not among these.
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_RECORD = re.compile(rb'(\d{1,7}) ([^=\n]{1,256})=')


class Stream(Protocol):
  """A binary file that can seek forward."""

  def tell(self) -> int:
    """The position, in bytes."""
    ...

  def seek(self, position: int, /) -> int:
    """Goes to a position."""
    ...

  def read(self, size: int, /) -> bytes:
    """At most `size` bytes; fewer at the end."""
    ...


class Member(NamedTuple):
  """What a header says of a file, folder, link or device."""

  name: str
  offset: int  # In bytes, of its contents.
  size: int  # In bytes.
  is_file: bool  # A regular one, stored as it is.
  is_folder: bool


def members(file: Stream) -> Iterator[Member]:
  """What is in a tar, in its order; the file stands at each one's contents.

  Whoever takes the members may read those contents in between.

  Args:
    file: positioned at 0.

  Yields:
    Files, folders, and what is neither. Fields of pax other than names and
    sizes are passed over.

  Raises:
    TarError: it is no tar, damaged or cut off, or an extension header has more
      than `MAX_EXTENSION` bytes or means something unknown.

  >>> import io
  >>> next(members(io.BytesIO(tarfile.TarInfo('empty').tobuf())))
  Member(name='empty', offset=512, size=0, is_file=True, is_folder=False)
  """
  position, fields = 0, _Fields()
  while (header := _read_header(file, position)) is not None:
    position += _BLOCK
    size = header.size if fields.size is None else fields.size
    if size < 0:  # The next header would be an earlier one, without end.
      raise tarfile.ReadError(f'a member has {size} bytes')
    if header.type in _LONG or header.type in _PAX:
      fields = fields.update(header.type, _read_extension(file, header.size))
      position += _padded(header.size)
      continue
    is_file, is_folder = header.type in _FILES, header.isdir()
    name = header.name if fields.name is None else fields.name
    yield Member(name, position, size, is_file, is_folder)
    # Nothing is stored of folders and links, whatever size they have.
    if is_file or header.type not in tarfile.SUPPORTED_TYPES:
      position += _padded(size)
    fields = _Fields()
  if fields != _Fields():
    raise tarfile.ReadError('unexpected end of data')


class _Fields(NamedTuple):
  """What extension headers say of the member that follows them."""

  name: str | None = None
  size: int | None = None

  def update(self, kind: bytes, content: bytes) -> '_Fields':
    if kind == tarfile.GNUTYPE_LONGLINK:
      return self  # The link that follows is none of our files.
    if kind == tarfile.GNUTYPE_LONGNAME:
      return self._replace(name=_text(content.split(b'\0', 1)[0]))
    found = _parse_pax(content)
    if kind == tarfile.XGLTYPE and found != _Fields():
      raise tarfile.ReadError('one name or size is given to all members')
    return self._replace(
      **{k: v for k, v in found._asdict().items() if v is not None}
    )


def _read_header(file: Stream, position: int) -> tarfile.TarInfo | None:
  """The header there; None at the end of the archive."""
  if position != file.tell():
    file.seek(position - 1)  # A seek alone may go beyond the end.
    if not file.read(1):
      raise tarfile.ReadError('unexpected end of data')
  block = file.read(_BLOCK)
  # An archive ends in blocks of zeros, or without them.
  if not any(block) and (position or len(block) == _BLOCK):
    return None
  try:
    return tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
  except tarfile.HeaderError as error:
    if position == 0:
      raise
    raise tarfile.ReadError(
      f'it is damaged at byte {position}: {error}'
    ) from None


def _read_extension(file: Stream, size: int) -> bytes:
  if not 0 <= size <= MAX_EXTENSION:
    raise tarfile.ReadError(
      f'an extension header has {size} bytes, more than {MAX_EXTENSION}: a '
      'bomb?'
    )
  content = file.read(size)
  if len(content) != size:
    raise tarfile.ReadError('unexpected end of data')
  return content


def _parse_pax(content: bytes) -> _Fields:
  """Records 'LENGTH KEY=VALUE', each of LENGTH bytes and ended by a newline."""
  name, size, position = None, None, 0
  while position < len(content):
    match = _PAX_RECORD.match(content, position)
    end = position + int(match[1]) if match else 0
    if not match or not match.end() < end <= len(content):
      raise tarfile.ReadError('a pax header is malformed')
    key, value = match[2], content[match.end() : end - 1]
    if content[end - 1 : end] != b'\n':
      raise tarfile.ReadError('a pax header is malformed')
    if key.startswith(b'GNU.sparse.'):
      raise tarfile.ReadError('it holds a sparse file')
    if key == b'path':
      name = _text(value)
    elif key == b'size':
      if not re.fullmatch(rb'\d{1,18}', value):
        raise tarfile.ReadError('a pax header is malformed')
      size = int(value)
    position = end
  return _Fields(name, size)


def _text(name: bytes) -> str:
  return name.decode('utf-8', 'surrogateescape')


def _padded(size: int) -> int:
  return -(-size // _BLOCK) * _BLOCK
