"""Damages one checkpoint; `benchmarks/corruption.py` does so at random."""

import json
import time

from orbax.checkpoint._src.metadata import checkpoint as orbax_metadata

from lipnext_jax import checkpoint
from lipnext_jax.checkpoint import manifest


def test_every_damage_to_every_file_is_found(workdir):
  directory = workdir / 'checkpoints' / '8'
  tried = 0
  for path in [p for p in directory.rglob('*') if p.is_file()]:
    name, whole = str(path.relative_to(directory)), path.read_bytes()
    places = {0, len(whole) // 3, len(whole) - 1} if whole else ()
    flipped = (
      whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
      for at in places
    )
    for changed in (whole[: len(whole) // 2], whole + b'x', *flipped):
      if whole and changed != whole and name != manifest.COMMITTED:
        path.write_bytes(changed)
        assert name in manifest.find_damage(str(directory)), name
        tried += 1
    path.unlink()
    assert name in manifest.find_damage(str(directory)), name
    path.write_bytes(whole)
  assert tried > 50
  assert manifest.find_damage(str(directory)) is None
  (directory / 'extra').touch()
  assert manifest.find_damage(str(directory)) == 'extra does not belong to it'


def test_a_changed_manifest_does_not_verify(workdir):
  directory = workdir / 'checkpoints' / '8'
  path = directory / 'manifest.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({**fields, 'config_hash': 'x'}))
  assert 'checksum' in manifest.find_damage(str(directory))
  for text in ('', '[]', '{}', '{"own": 1', 'null', '"x"'):
    path.write_text(text)
    assert 'manifest.json' in manifest.find_damage(str(directory))


def test_metadata_that_orbax_writes_late_is_no_damage(
  tmp_path, make_state, monkeypatch
):
  """On a busy host its thread was later than the manifest, once in 200."""
  update = orbax_metadata._MetadataStoreImpl.update

  def late(*args, **fields):
    time.sleep(0.3)
    return update(*args, **fields)

  monkeypatch.setattr(orbax_metadata._MetadataStoreImpl, 'update', late)
  checkpointer = checkpoint.Checkpointer(str(tmp_path))
  checkpointer.save(1, make_state(1))
  checkpointer.close()
  assert manifest.find_damage(str(tmp_path / 'checkpoints' / '1')) is None
