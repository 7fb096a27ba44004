"""Manifests: complete, checked against themselves, blind to nothing.

What they find in real checkpoints is in checkpoint_test.py.
"""

import json
import os

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax import manifest


@pytest.fixture
def directory(tmp_path):
  """A checkpoint directory as Orbax would leave it, with its manifest."""
  folder = tmp_path / '7'
  (folder / 'default').mkdir(parents=True)
  (folder / 'default' / 'array').write_bytes(bytes(range(256)) * 1000)
  (folder / 'small').write_bytes(b'12')
  metadata = {'item_handlers': {}, 'commit_timestamp_nsecs': None}
  (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(metadata))
  arrays = manifest.describe_arrays({'a': np.zeros((2, 3), np.float32)})
  manifest.write(str(folder), step=7, arrays=arrays, config_hash='h')
  metadata['commit_timestamp_nsecs'] = 123
  (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(metadata))
  (folder / 'commit_success.txt').write_text(
    'Checkpoint commit was successful to /somewhere/7'
  )
  return folder


def test_a_whole_directory_has_no_damage(directory):
  assert manifest.find_damage(str(directory)) is None
  found = manifest.read(str(directory))
  assert found['step'] == 7
  assert found['arrays'] == {'a': [[2, 3], 'float32']}
  assert found['config_hash'] == 'h'


def test_large_files_may_be_left_out(directory):
  data = bytearray((directory / 'default' / 'array').read_bytes())
  data[5] ^= 1
  (directory / 'default' / 'array').write_bytes(data)
  assert manifest.find_damage(str(directory), 1000) is None
  assert 'default/array does not have' in manifest.find_damage(str(directory))
  (directory / 'small').write_bytes(b'13')
  assert 'small does not have' in manifest.find_damage(str(directory), 1000)


def test_a_changed_manifest_does_not_verify(directory):
  path = directory / 'manifest.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps({**fields, 'step': 8}))
  assert 'checksum' in manifest.find_damage(str(directory))
  for text in ('', '[]', '{}', '{"own": 1', 'null'):
    path.write_text(text)
    assert 'manifest.json' in manifest.find_damage(str(directory))


def test_files_that_do_not_belong_or_are_missing_are_named(directory):
  (directory / 'extra').touch()
  assert manifest.find_damage(str(directory)) == 'extra does not belong to it'
  (directory / 'extra').unlink()
  (directory / 'small').unlink()
  assert manifest.find_damage(str(directory)) == 'small is missing'


def test_the_hash_of_fields_knows_every_value():
  fields = {'a': 1, 'b': (1, 2.5), 'c': 'x'}
  own = manifest.hash_fields(fields)
  assert own == manifest.hash_fields(json.loads(json.dumps(fields)))
  for name, value in (('a', 2), ('b', (1, 2.4)), ('c', 'y'), ('d', None)):
    assert own != manifest.hash_fields({**fields, name: value})


def rewrite(directory, change):
  """A manifest of a stranger's making, its own checksum right."""
  path = directory / manifest.NAME
  fields = json.loads(path.read_text())
  del fields['own']
  change(fields)
  fields['own'] = manifest.hash_fields(fields)
  path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
  'change',
  [
    lambda m: m.pop('files'),
    lambda m: m.pop('arrays'),
    lambda m: m.pop('config_hash'),
    lambda m: m.update(files=[1]),
    lambda m: m.update(arrays={'w': 3}),
    lambda m: m.update(arrays={'w': [3]}),
    lambda m: m['files'].update(x=[1]),
    lambda m: m['files'].update(x=['1', 'abc']),
    lambda m: m['files'].update(x=None),
  ],
)
def test_a_manifest_with_other_fields_is_none(directory, change):
  rewrite(directory, change)
  assert manifest.find_damage(str(directory)) == (
    f'its {manifest.NAME} is none of ours'
  )


@pytest.mark.parametrize(
  'name', ['../../../dev/zero', '/dev/zero', 'pipe', 'link', 'folder/../pipe']
)
def test_only_files_inside_are_read(directory, name):
  """No device, no pipe, nothing elsewhere: each would hang, or be told of."""
  os.mkfifo(directory / 'pipe')
  (directory / 'link').symlink_to('/dev/zero')
  if name.startswith('..'):
    name = os.path.relpath('/dev/zero', directory)
  rewrite(directory, lambda m: m['files'].update({name: [1, 'x']}))
  assert 'is no file of its own' in manifest.find_damage(str(directory))


@pytest.mark.parametrize(
  ('name', 'shape', 'old'),
  [
    ('params/blocks/R', (2, 8, 8), True),
    ('opt_state/slow/blocks/R', (2, 8, 8), True),
    ('params/blocks/R', (2, 6, 8), False),  # Other rows, of another α.
    ('params/blocks/M', (2, 8, 8), False),
    ('params/blocks/R', (3, 8, 8), False),
  ],
)
def test_whole_matrices_r_are_called_the_old_layout(tmp_path, name, shape, old):
  arrays = {name: [list(shape), 'float32']}
  manifest.write(str(tmp_path), step=1, arrays=arrays, config_hash='')
  *parents, leaf = name.split('/')
  state = {leaf: np.zeros((2, 4, 8), np.float32)}
  for parent in reversed(parents):
    state = {parent: state}
  with pytest.raises(errors.CheckpointError) as error:
    manifest.check_matches(str(tmp_path), state, '')
  assert name in str(error.value)
  assert ('of the old layout' in str(error.value)) == old
