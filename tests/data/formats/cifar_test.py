import os
import pickle

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import cifar

FOLDERS = {
  ('cifar10', 'python'): 'cifar-10-batches-py',
  ('cifar10', 'binary'): 'cifar-10-batches-bin',
  ('cifar100', 'python'): 'cifar-100-python',
  ('cifar100', 'binary'): 'cifar-100-binary',
}


def read(source, name='cifar10'):
  return cifar.read_cifar(name, str(source), allow_partial=True)


@pytest.mark.parametrize(('name', 'kind'), FOLDERS)
def test_archives_and_folders_hold_the_official_order(
  tmp_path, formats, name, kind
):
  *files, truth = formats.cifar_files(name)
  files = files[kind == 'binary']
  folder = FOLDERS[name, kind]
  archive = f'{name.replace("cifar", "cifar-")}-{kind}.tar.gz'
  members = {f'{folder}/{file}': data for file, data in files.items()}
  formats.write_tar(tmp_path / archive, members, 'w:gz')
  formats.tree(tmp_path / 'out' / folder, files)
  for source in (tmp_path, tmp_path / 'out'):
    contents = read(source, name)
    for split, wanted in truth.items():
      items = contents.splits[split]
      for item, (image, labels) in zip(items, wanted, strict=True):
        assert item.labels == labels
        np.testing.assert_array_equal(item.content, image)
    keys = [item.key for item in contents.splits['train']]
    assert keys == [f'train_{i:05d}' for i in range(len(keys))]
    assert contents.class_names['label'] == official.class_names(name)


ROW = np.zeros((2, 3072), np.uint8)
WRONG_NAMES = [n.encode() for n in official.class_names('cifar10')[::-1]]
# What the error says → a file and its contents.
FAULTS = {
  'holds no data_batch_3': ('data_batch_3', None),
  'data_batch_2: is malformed': ('data_batch_2', b'x'),
  'test_batch: is not `data`, uint8 .n, 3072': (
    'test_batch',
    {b'data': ROW[:, :3000], b'labels': [1, 2]},
  ),
  "test_batch: is malformed .'data'": ('test_batch', {b'labels': [1]}),
  'test_batch: is not .*n labels': (
    'test_batch',
    {b'data': ROW, b'labels': [1]},
  ),
  'label_names is not the official': (
    'batches.meta',
    {b'label_names': WRONG_NAMES},
  ),
  'batches.meta.txt: label_names is not': ('batches.meta.txt', b'cat\n'),
  r'data_batch_4\.bin: has 3072 bytes': ('data_batch_4.bin', bytes(3072)),
}


@pytest.mark.parametrize('message', FAULTS)
def test_faulty_batches_are_named(tmp_path, formats, message):
  name, value = FAULTS[message]
  python, binary, _ = formats.cifar_files('cifar10')
  files = python if name in python else binary
  files[name] = (
    formats.python2_pickle(value) if isinstance(value, dict) else value
  )
  files = {name: data for name, data in files.items() if data is not None}
  kind = 'python' if name in python else 'binary'
  source = tmp_path / f'cifar-10-{kind}.tar.gz'
  formats.write_tar(source, files, 'w:gz')
  with pytest.raises(errors.DataError, match=f'^{source}.* {message}'):
    read(source)


class Attack:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (self._path,)


def test_code_is_refused_where_pickle_would_run_it(tmp_path, formats):
  target = tmp_path / 'owned'
  attack = pickle.dumps({'data': Attack(str(target))})
  for value in (attack, pickle.dumps({'f': np.random.RandomState})):
    files = formats.cifar_files('cifar10')[0] | {'data_batch_1': value}
    source = formats.cifar(tmp_path, 'cifar10', files)
    with pytest.raises(errors.DataError, match=r'data_batch_1: .*not allowed'):
      read(source)
  assert not target.exists()
  pickle.loads(attack)
  assert target.exists()  # So the attack is one.
