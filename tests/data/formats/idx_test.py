import gzip
import hashlib
import os
import struct

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data import prepare
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import idx

DEBIAN = '/usr/share/datasets/fashion-mnist'  # Of dataset-fashion-mnist.
IMAGES, LABELS = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte'
TEST_IMAGES, TEST_LABELS = 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'


def read(source, allow_partial=True):
  return idx.read_idx(
    official.FASHION_MNIST, str(source), allow_partial=allow_partial
  )


@pytest.mark.parametrize(
  'compressed',
  [(), (IMAGES, TEST_LABELS), (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS)],
)
def test_plain_and_compressed_files_are_read_alike(
  tmp_path, formats, compressed
):
  files, truth = formats.idx_files()
  for name in compressed:
    files[f'{name}.gz'] = gzip.compress(files.pop(name))
  contents = read(formats.tree(tmp_path, files))
  assert contents.class_names['label'][::9] == ['T-shirt/top', 'Ankle boot']
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    items = contents.splits[split]
    images, labels = truth[prefix]
    np.testing.assert_array_equal([item.content for item in items], images)
    assert [item.labels['label'] for item in items] == labels.tolist()
    assert items[-1].key == f'{split}_{len(labels) - 1:05d}'


def of(count, side=28, magic=2051):
  header = struct.pack('>4i', magic, count, side, side)
  return header + bytes(count * side**2)


FILE = 'is cut off, or not an IDX file of n×28×28 bytes'
# Fault → a file, its contents, and what the error says after its path.
FAULTS = {
  'an empty file': (IMAGES, b'', FILE),
  'a cut header': (LABELS, b'\0\0\x08\x01\0\0', 'is cut .* of n bytes'),
  'labels': (TEST_IMAGES, struct.pack('>2i', 2049, 5) + bytes(5), FILE),
  'another type': (TEST_IMAGES, of(5, magic=3331), FILE),
  'images of another size': (TEST_IMAGES, of(3, side=32), FILE),
  'fewer images than announced': (IMAGES, of(12)[:-784], FILE),
  'more images than announced': (TEST_IMAGES, of(3) + bytes(784), FILE),
  'an absurd count': (IMAGES, struct.pack('>4I', 2051, 2**31, 28, 28), FILE),
}


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('fault', FAULTS)
def test_a_malformed_file_is_one_line(tmp_path, formats, fault, compressed):
  name, data, message = FAULTS[fault]
  write = formats.idx if compressed else formats.tree
  folder = write(tmp_path, formats.idx_files()[0] | {name: data})
  path = f'{folder}/{name}' + ('.gz' if compressed else '')
  with pytest.raises(errors.DataError, match=f'^{path}: {message}'):
    read(folder)


def test_other_numbers_of_images_and_labels_are_refused(tmp_path, formats):
  files, _ = formats.idx_files()
  files[LABELS] = struct.pack('>2i', 2049, 11) + bytes(11)
  with pytest.raises(errors.DataError, match='12 images but 11 labels'):
    read(formats.tree(tmp_path, files))


def test_a_missing_file_comes_with_the_places_to_get_it(tmp_path, formats):
  files, _ = formats.idx_files()
  del files[LABELS]
  message = (
    rf'none of {LABELS}\.gz, {LABELS}; give the folder .*github\.com/'
    'zalandoresearch/fashion-mnist .*Debian package dataset-fashion-mnist'
  )
  with pytest.raises(errors.DataError, match=message):
    read(formats.tree(tmp_path, files))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda data: data[:-9], 'cannot be read'),  # Its last bytes and its sum.
    (lambda data: data[:-8] + bytes(8), 'cannot be read .*CRC'),
    (lambda data: b'<html>', 'cannot be read .*gzip'),
    (lambda data: data[:10] + b'\xff' * 20, 'cannot be read'),
    (lambda data: gzip.compress(bytes(20_000)), 'holds more than 18000'),
  ],
)
def test_damaged_and_endless_gzip_files_are_one_line(
  tmp_path, formats, monkeypatch, damage, message
):
  monkeypatch.setattr(archives, 'MAX_BYTES', 18_000)
  path = f'{formats.idx(tmp_path)}/{IMAGES}.gz'
  with open(path, 'rb') as file:
    data = file.read()
  with open(path, 'wb') as file:
    file.write(damage(data))
  with pytest.raises(errors.DataError, match=f'{path}: {message}'):
    read(tmp_path)


@pytest.mark.parametrize(
  ('kind', 'contents_known', 'taken'),
  [
    ('as published', False, True),
    ('compressed anew', True, True),
    ('compressed anew', False, False),
    ('plain', True, True),
    ('plain', False, False),
    ('with another byte', True, False),
  ],
)
def test_official_files_are_known_by_either_checksum(
  tmp_path, formats, monkeypatch, capsys, kind, contents_known, taken
):
  files, _ = formats.idx_files()
  known = [gzip.compress(data, mtime=0) for data in files.values()]
  known += files.values() if contents_known else ()
  digests = {hashlib.sha256(data).hexdigest() for data in known}
  monkeypatch.setitem(official.IDX_CHECKSUMS, 'fashion_mnist', digests)
  if kind == 'with another byte':
    files[LABELS] = files[LABELS][:-1] + b'\0'
  level = {'as published': 9, 'compressed anew': 1}.get(kind)
  if level:
    files = {
      f'{name}.gz': gzip.compress(data, level, mtime=0)
      for name, data in files.items()
    }
  folder = formats.tree(tmp_path, files)
  if taken:
    read(folder, allow_partial=False)
    assert not capsys.readouterr().err
    return
  with pytest.raises(errors.DataError, match=r'checksum .*not the official'):
    read(folder, allow_partial=False)
  read(folder)
  assert 'its contents are not verified' in capsys.readouterr().err


@pytest.mark.skipif(
  not os.path.isdir(DEBIAN),
  reason='needs apt-get install dataset-fashion-mnist',
)
def test_debian_has_the_official_fashion_mnist():
  contents = prepare.read_set(prepare.Options('fashion_mnist', DEBIAN, '/x'))
  train, test = contents.splits['train'], contents.splits['test']
  assert (len(train), len(test)) == (60_000, 10_000)
  first = [item.labels['label'] for item in train[:10]]
  assert first == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
  first = [item.labels['label'] for item in test[:10]]
  assert first == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
