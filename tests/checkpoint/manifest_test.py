"""Damages one checkpoint; `benchmarks/corruption.py` does so at random."""

import json

import jax
import numpy as np

from lipnext_jax import checkpoint
from lipnext_jax.checkpoint import manifest


def test_every_damage_to_every_file_is_found(workdir):
  directory = workdir / 'checkpoints' / '8'
  tried = 0
  for path in [p for p in directory.rglob('*') if p.is_file()]:
    if path.name == manifest.METADATA:
      continue
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


def test_nothing_is_restored_from_the_metadata_of_orbax(workdir, make_state):
  """A thread of Orbax writes it, on a busy host after the manifest."""
  state = make_state(64)
  abstract = jax.eval_shape(lambda: state)
  for text in ('', '{"item_handlers', None):
    path = workdir / 'checkpoints' / '64' / manifest.METADATA
    path.unlink() if text is None else path.write_text(text)
    checkpointer = checkpoint.Checkpointer(str(workdir))
    assert checkpointer.find_newest() == 64
    restored = checkpointer.restore(64, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert checkpointer.choose('best') == 8
    checkpointer.close()
