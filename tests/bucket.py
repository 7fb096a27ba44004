"""A fake of Google Cloud Storage: a bucket in memory, on the loopback address.

The part of its JSON API that gcsfs, google-cloud-storage and TensorStore use
here. Only one client writes, so preconditions on generations are not checked.
"""

from http import server
import json
import re
import threading
from typing import Self
from urllib import parse

NAME = 'bucket'
_HOUR = '2026-01-01T00:00:00.000Z'


class Bucket(server.ThreadingHTTPServer):
  """Serves until the end of the `with` block.

  Attributes:
    objects: by name: (generation, content).
    address: host:port.
    written: the names of all that was written, in order.
    refusal: HTTP status of every reply; 0: it does what it is asked to do.
    lock: to be held while objects change.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.objects: dict[str, tuple[int, bytes]] = {}
    self.written: list[str] = []
    self.generation = 0
    self.refusal = 0
    self.lock = threading.Lock()
    self.address = f'127.0.0.1:{self.server_port}'

  def write(self, name: str, content: bytes) -> None:
    """Replaces an object at once."""
    self.generation += 1
    self.written.append(name)
    self.objects[name] = self.generation, content

  def handle_error(self, request, client_address):
    """Says nothing where a client has hung up."""

  def __enter__(self) -> Self:
    threading.Thread(target=self.serve_forever, args=(0.01,)).start()
    return self

  def __exit__(self, *error: object) -> None:
    self.shutdown()
    self.server_close()


class _Handler(server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Bucket

  def log_message(self, *args):
    """Logs nothing."""

  def _handle(self):
    path, _, query = self.path.partition('?')
    self.query = dict(parse.parse_qsl(query))
    self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    path = re.sub('^/(upload|download)/', '/', path)
    with self.server.lock:
      if status := self.server.refusal:
        return self._reply(status, {'error': {'message': 'no permission'}})
      match = re.fullmatch(f'/storage/v1/b/{NAME}(/o(/.*)?)?', path)
      if match is None:
        return self._reply(404, {'error': {'message': f'no {path}'}})
      if match[1] is None:
        return self._reply(200, {'name': NAME, 'kind': 'storage#bucket'})
      if match[2]:
        return self._object(match[2][1:])
      return self._list() if self.command == 'GET' else self._upload()

  do_GET = do_POST = do_DELETE = _handle  # noqa: N815

  def _reply(self, status, content=b'', kind='application/json', **headers):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    self.send_response(status)
    headers |= {'Content-Type': kind, 'Content-Length': len(content)}
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), str(value))
    self.end_headers()
    self.wfile.write(content)

  def _describe(self, name):
    generation, content = self.server.objects[name]
    return {
      'kind': 'storage#object', 'bucket': NAME, 'name': name,
      'size': str(len(content)), 'generation': str(generation),
      'metageneration': '1', 'timeCreated': _HOUR, 'updated': _HOUR,
      'contentType': 'application/octet-stream',
    }  # fmt: skip

  def _list(self):
    prefix, delimiter = (
      self.query.get(key, '') for key in ('prefix', 'delimiter')
    )
    items, prefixes = [], []
    for name in sorted(self.server.objects):
      first = self.query.get('startOffset', '')
      last = self.query.get('endOffset', name + '.')
      if name.startswith(prefix) and first <= name < last:
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
          prefixes.append(prefix + rest.split(delimiter)[0] + delimiter)
        else:
          items.append(self._describe(name))
    self._reply(200, {'items': items, 'prefixes': sorted({*prefixes})})

  def _upload(self):
    name, content = self.query.get('name'), self.body
    if self.query['uploadType'] == 'multipart':
      boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])
      _, about, rest = content.split(f'--{boundary[1]}'.encode(), 2)
      name = json.loads(re.split(rb'\r?\n\r?\n', about, maxsplit=1)[1])['name']
      end = re.search(
        rb'\r?\n--%b--\s*$' % re.escape(boundary[1].encode()), rest
      )
      content = re.split(rb'\r?\n\r?\n', rest[: end.start()], maxsplit=1)[1]
    elif self.query['uploadType'] != 'media' and 'upload_id' not in self.query:
      # The content comes next, in one part.
      where = f'http://{self.server.address}{self.path}&upload_id=0'
      return self._reply(200, Location=where)
    self.server.write(name, content)
    return self._reply(200, self._describe(name))

  def _object(self, path):
    name, *target = map(
      parse.unquote, re.split(f'/(?:rewrite|copy)To/b/{NAME}/o/', path)
    )
    if name not in self.server.objects:
      return self._reply(404, {'error': {'message': f'no {name}'}})
    generation, content = self.server.objects[name]
    if target:
      self.server.write(target[0], content)
      resource = self._describe(target[0])
      return self._reply(200, {'done': True, 'resource': resource})
    if self.command == 'DELETE':
      del self.server.objects[name]
      return self._reply(204)
    if self.query.get('alt') != 'media':
      return self._reply(200, self._describe(name))
    status, headers, size = 200, {'X-Goog-Generation': generation}, len(content)
    if match := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range'] or ''):
      first, last = int(match[1]), min(int(match[2] or size), size - 1)
      status, content = 206, content[first : last + 1]
      headers['Content-Range'] = f'bytes {first}-{last}/{size}'
    return self._reply(status, content, 'application/octet-stream', **headers)
