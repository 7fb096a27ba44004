"""Tests that manifests find every damage.

`benchmarks/corruption.py` damages real checkpoints at random.
"""

import json

import pytest

from lipnext_jax.checkpoint import manifest


@pytest.fixture
def directory(workdir):
  """A checkpoint that Orbax wrote, with its manifest."""
  return workdir / 'checkpoints' / '8'


def test_a_whole_directory_has_no_damage(directory):
  assert manifest.find_damage(str(directory)) is None
  found = manifest.read(str(directory))
  assert found['step'] == 8
  arrays = {'w': [[256, 256], 'float32'], 'step': [[], 'int32']}
  assert found['arrays'] == arrays
  assert found['config_hash'] == 'h'


def flipped(data, at):
  data = bytearray(data)
  data[at] ^= 1 << at % 8
  return bytes(data)


KINDS = {
  'emptied': lambda data: b'',
  'truncated': lambda data: data[: len(data) // 2],
  'extended': lambda data: data + b'x',
  'first bit': lambda data: flipped(data, 0),
  'some bit': lambda data: flipped(data, len(data) // 3),
  'last bit': lambda data: flipped(data, len(data) - 1),
}


def test_every_damage_to_every_file_is_found(directory):
  tried = 0
  for path in [p for p in directory.rglob('*') if p.is_file()]:
    name, whole = str(path.relative_to(directory)), path.read_bytes()
    for kind, change in KINDS.items():
      if whole and (changed := change(whole)) != whole:
        path.write_bytes(changed)
        assert name in manifest.find_damage(str(directory)), (name, kind)
        tried += 1
    path.unlink()
    assert name in manifest.find_damage(str(directory)), name
    path.write_bytes(whole)
  assert tried > 60
  assert manifest.find_damage(str(directory)) is None
  (directory / 'extra').touch()
  assert manifest.find_damage(str(directory)) == 'extra does not belong to it'


def test_large_files_may_be_left_out(directory):
  files = [p for p in directory.rglob('*') if p.is_file()]
  large = max(files, key=lambda path: path.stat().st_size)
  limit = large.stat().st_size - 1
  large.write_bytes(flipped(large.read_bytes(), 5))
  assert manifest.find_damage(str(directory), limit) is None
  assert 'does not have its checksum' in manifest.find_damage(str(directory))
  (directory / 'metrics' / 'metrics').write_text('{}')
  assert 'metrics has 2 bytes' in manifest.find_damage(str(directory), limit)


def test_a_changed_manifest_does_not_verify(directory):
  path = directory / 'manifest.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({**fields, 'step': 9}))
  assert 'checksum' in manifest.find_damage(str(directory))
  for text in ('', '[]', '{}', '{"own": 1', 'null', '"x"'):
    path.write_text(text)
    assert 'manifest.json' in manifest.find_damage(str(directory))


def test_the_hash_of_fields_knows_every_value():
  fields = {'a': 1, 'b': (1, 2.5), 'c': 'x'}
  own = manifest.hash_fields(fields)
  assert own == manifest.hash_fields(json.loads(json.dumps(fields)))
  for name, value in (('a', 2), ('b', (1, 2.4)), ('c', 'y'), ('d', None)):
    assert own != manifest.hash_fields({**fields, name: value})
