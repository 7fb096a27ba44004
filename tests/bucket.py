"""A fake of Google Cloud Storage: a bucket in memory, on the loopback address.

The part of its JSON API that gcsfs, google-cloud-storage and TensorStore use
here. Only one client writes, so preconditions on generations are not checked.
"""

import email
from http import server
import json
import re
import threading
from urllib import parse
import zlib

NAME = 'bucket'


class Bucket(server.ThreadingHTTPServer):
  """The server: `objects` are contents by name, in the order of first writes.

  If `refusal` is not 0, it is the HTTP status of every reply.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.objects: dict[str, bytes] = {}
    self.address = f'127.0.0.1:{self.server_port}'
    self.refusal = 0
    self.lock = threading.Lock()  # Each connection has a thread.

  def handle_error(self, request, client_address):
    """Says nothing where a client has hung up."""


def _error(message):
  return {'error': {'message': message}}


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Bucket

  def log_message(self, *args):
    """Logs nothing."""

  def _handle(self):
    path, _, query = self.path.partition('?')
    self.query = dict(parse.parse_qsl(query))
    self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    match = re.fullmatch(
      f'(?:/upload|/download)?/storage/v1/b/{NAME}(/o(?:/(.*))?)?', path
    )
    with self.server.lock:
      if self.server.refusal:
        self._reply(_error('no permission'), self.server.refusal)
      elif match is None:
        self._reply(_error(f'no {path}'), 404)
      elif match[1] is None:
        self._reply({'name': NAME})
      elif match[2]:
        self._object(match[2])
      elif self.command == 'GET':
        self._list()
      else:
        self._upload()

  do_GET = do_POST = do_DELETE = _handle  # noqa: N815

  def _reply(self, content, status=200, **headers):
    kind = 'application/octet-stream'
    if not isinstance(content, bytes):
      content, kind = json.dumps(content).encode(), 'application/json'
    self.send_response(status)
    headers |= {'Content-Type': kind, 'Content-Length': len(content)}
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), str(value))
    self.end_headers()
    self.wfile.write(content)

  def _describe(self, name):
    # A generation changes with the content.
    content = self.server.objects[name]
    generation = str(1 + zlib.crc32(content))
    about = {'name': name, 'bucket': NAME, 'generation': generation}
    return about | {'size': str(len(content))}

  def _list(self):
    prefix, delimiter, first, last = (
      self.query.get(key, '')
      for key in ('prefix', 'delimiter', 'startOffset', 'endOffset')
    )
    items, prefixes = [], set()
    for name in sorted(self.server.objects):
      if name.startswith(prefix) and first <= name < (last or name + '.'):
        head, found, _ = name[len(prefix) :].partition(delimiter or '\n')
        if found:
          prefixes.add(prefix + head + delimiter)
        else:
          items.append(self._describe(name))
    self._reply({'items': items, 'prefixes': sorted(prefixes)})

  def _upload(self):
    name, content = self.query.get('name'), self.body
    if self.query['uploadType'] == 'multipart':
      kind = f'Content-Type: {self.headers["Content-Type"]}\r\n\r\n'
      parts = email.message_from_bytes(kind.encode() + content).get_payload()
      about, content = (part.get_payload(decode=True) for part in parts)
      name = json.loads(about)['name']
    elif self.query['uploadType'] != 'media' and 'upload_id' not in self.query:
      # The content comes next, in one part.
      where = f'http://{self.server.address}{self.path}&upload_id=0'
      return self._reply(b'', Location=where)
    self.server.objects[name] = content
    return self._reply(self._describe(name))

  def _object(self, path):
    name, *target = map(
      parse.unquote, re.split(f'/rewriteTo/b/{NAME}/o/', path)
    )
    if name not in self.server.objects:
      return self._reply(_error(f'no {name}'), 404)
    content = self.server.objects[name]
    if target:
      self.server.objects[target[0]] = content
      return self._reply({'done': True, 'resource': self._describe(*target)})
    if self.command == 'DELETE':
      del self.server.objects[name]
      return self._reply(b'', 204)
    about, size = self._describe(name), len(content)
    if self.query.get('alt') != 'media':
      return self._reply(about)
    headers = {}
    if match := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range'] or ''):
      first, last = int(match[1]), min(int(match[2] or size), size - 1)
      headers['Content-Range'] = f'bytes {first}-{last}/{size}'
      return self._reply(content[first : last + 1], 206, **headers)
    return self._reply(content, **headers)
