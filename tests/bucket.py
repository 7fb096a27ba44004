"""A fake of Google Cloud Storage: a bucket in memory, on the loopback address.

The part of its JSON API that gcsfs, google-cloud-storage and TensorStore use
here, with generations and their preconditions, by which TensorStore commits.
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
    self.uploads: dict[str, bytes] = {}  # Of several parts, by id.
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
      if path == '/batch/storage/v1':
        return self._batch()
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

  def _refused(self, name):
    """Replies where a precondition does not hold."""
    generation = self.server.objects.get(name, (0,))[0]
    wanted = self.query.get('ifGenerationMatch', generation)
    if int(wanted) != generation:
      self._reply(412, {'error': {'message': 'another generation'}})
      return True
    if self.query.get('ifGenerationNotMatch') == str(generation):
      self._reply(304)
      return True
    return False

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
    elif self.query['uploadType'] == 'resumable':
      name, content = self._resume()
      if content is None:
        return None
    if not self._refused(name):
      self.server.write(name, content)
      self._reply(200, self._describe(name))

  def _resume(self):
    """Takes a part of an upload; returns name and content of a whole one."""
    name, uploads = self.query['name'], self.server.uploads
    if 'upload_id' not in self.query:
      key = str(len(uploads))
      uploads[key] = b''
      where = f'http://{self.server.address}{self.path}&upload_id={key}'
      self._reply(200, Location=where)
      return name, None
    key = self.query['upload_id']
    uploads[key] += self.body
    if self.headers['Content-Range'].endswith('*'):
      self._reply(308, Range=f'bytes=0-{len(uploads[key]) - 1}')
      return name, None
    return name, uploads[key]

  def _object(self, path):
    name, *target = map(
      parse.unquote, re.split(f'/(?:rewrite|copy)To/b/{NAME}/o/', path)
    )
    if name not in self.server.objects:
      return self._reply(404, {'error': {'message': f'no {name}'}})
    if self._refused(name):
      return None
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
      if first >= size:
        return self._reply(416)
      status, content = 206, content[first : last + 1]
      headers['Content-Range'] = f'bytes {first}-{last}/{size}'
    return self._reply(status, content, 'application/octet-stream', **headers)

  def _batch(self):
    boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1]
    found = re.findall(
      rf'DELETE /storage/v1/b/{NAME}/o/(\S+)'.encode(), self.body
    )
    text = ''
    for name in found:
      known = self.server.objects.pop(parse.unquote(name.decode()), None)
      text += f'--{boundary}\r\nContent-Type: application/http\r\n\r\n'
      text += f'HTTP/1.1 {204 if known else 404} done\r\n\r\n\r\n'
    text += f'--{boundary}--'
    self._reply(200, text.encode(), f'multipart/mixed; boundary={boundary}')
