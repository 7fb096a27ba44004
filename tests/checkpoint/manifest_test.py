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


def test_a_changed_manifest_does_not_verify(directory):
  path = directory / 'manifest.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({**fields, 'config_hash': 'x'}))
  assert 'checksum' in manifest.find_damage(str(directory))
  for text in ('', '[]', '{}', '{"own": 1', 'null', '"x"'):
    path.write_text(text)
    assert 'manifest.json' in manifest.find_damage(str(directory))
