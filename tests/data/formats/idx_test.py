import gzip
import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data import prepare
from lipnext_jax.data.formats import idx

DEBIAN = '/usr/share/datasets/fashion-mnist'  # Of dataset-fashion-mnist.
IMAGES, LABELS = idx.FILES['train']
TEST_IMAGES, TEST_LABELS = idx.FILES['test']
# Of the size of the files that the tests make.
SMALL = official.FASHION_MNIST._replace(
  splits={'train': 12, 'test': 5}, balanced=()
)


def read(source, official_set=SMALL, allow_partial=True):
  return idx.read_idx(official_set, str(source), allow_partial=allow_partial)


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
  contents = read(formats.tree(tmp_path, files), official.FASHION_MNIST)
  assert contents.class_names['label'][::9] == ['T-shirt/top', 'Ankle boot']
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    items = contents.splits[split]
    images, labels = truth[prefix]
    assert [item.content for item in items] == [i.tobytes() for i in images]
    assert [item.labels['label'] for item in items] == labels.tolist()
    assert items[-1].key == f'{split}_{len(labels) - 1:05d}'


def of(count, side=28, magic=2051):
  header = struct.pack('>4i', magic, count, side, side)
  return header + bytes(count * side**2)


# Fault → a file, its contents, and what the error says after its path.
FAULTS = {
  'an empty file': (IMAGES, b'', 'ends within its header'),
  'a cut header': (LABELS, b'\0\0\x08\x01\0\0', 'ends within its header'),
  'another magic number': (
    TEST_IMAGES,
    of(5, magic=3331),
    'has the magic number 3331 instead of 2051',
  ),
  'images of another size': (
    TEST_IMAGES,
    of(3, side=32),
    r'has images of \[32, 32\] pixels instead of \[28, 28\]',
  ),
  'fewer images than announced': (
    IMAGES,
    of(12)[:-784],
    'has 8624 bytes of data, where its header says 9408',
  ),
  'more images than announced': (
    TEST_IMAGES,
    of(3) + bytes(784),
    'has 3136 bytes of data, where its header says 2352',
  ),
  'an absurd count': (
    IMAGES,
    struct.pack('>4I', 2051, 2**32 - 1, 28, 28),
    'has 0 bytes of data, where its header says 3367254359280',
  ),
  'more images than the set has': (IMAGES, of(13), 'holds more than 9424'),
  'fewer labels than images': (
    LABELS,
    struct.pack('>2i', 2049, 11) + bytes(11),
    f'has 11 labels, but .*{IMAGES}.* has 12 images',
  ),
  'a label that is none': (
    TEST_LABELS,
    struct.pack('>2i', 2049, 5) + b'\0\x09\x0a\0\xff',
    r'label 2 \(from 0\) is 10, of 10 classes',
  ),
}


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('fault', FAULTS)
def test_a_malformed_file_is_one_line(tmp_path, formats, fault, compressed):
  name, data, message = FAULTS[fault]
  write = formats.idx if compressed else formats.tree
  folder = write(tmp_path, formats.idx_files()[0] | {name: data})
  path = f'{folder}/{name}' + ('.gz' if compressed else '')
  with pytest.raises(errors.DataError, match=f'^{path}: {message}') as caught:
    read(folder)
  assert '\n' not in str(caught.value)


def test_a_missing_file_comes_with_the_places_to_get_it(tmp_path, formats):
  files, _ = formats.idx_files()
  del files[LABELS]
  message = (
    rf'holds neither {LABELS}\.gz nor {LABELS}; give the folder .*github\.com/'
    'zalandoresearch/fashion-mnist .*Debian package dataset-fashion-mnist'
  )
  with pytest.raises(errors.DataError, match=message):
    read(formats.tree(tmp_path, files))


def test_swapped_files_are_named(tmp_path, formats):
  files, _ = formats.idx_files()
  swapped = {IMAGES: files[LABELS], LABELS: files[IMAGES]}
  with pytest.raises(errors.DataError, match='magic number 2049 instead of'):
    read(formats.tree(tmp_path / 'kinds', files | swapped))
  swapped = {
    name: files[name.replace(old, new)]
    for old, new in (('train', 't10k'), ('t10k', 'train'))
    for name in files
    if name.startswith(old)
  }
  with pytest.raises(errors.DataError, match=f'{TEST_IMAGES}: holds more than'):
    read(formats.tree(tmp_path / 'splits', swapped))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda data: data[:-9], 'cannot be read'),  # Its last bytes and its sum.
    (lambda data: data[:-8] + bytes(8), 'cannot be read .*CRC'),
    (lambda data: b'<html>', 'cannot be read .*gzip'),
    (lambda data: data[:10] + b'\xff' * 20, 'cannot be read'),
  ],
)
def test_a_damaged_gzip_file_is_one_line(tmp_path, formats, damage, message):
  path = f'{formats.idx(tmp_path)}/{IMAGES}.gz'
  with open(path, 'rb') as file:
    data = file.read()
  with open(path, 'wb') as file:
    file.write(damage(data))
  with pytest.raises(errors.DataError, match=f'{path}: {message}'):
    read(tmp_path)


def test_no_more_is_decompressed_than_the_official_file_has(tmp_path, formats):
  path = f'{formats.idx(tmp_path)}/{IMAGES}.gz'
  with open(path, 'wb') as file:
    file.write(gzip.compress(bytes(32 << 20)))
  tracemalloc.start()
  try:
    with pytest.raises(errors.DataError, match='holds more than 9424 bytes'):
      read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 4 << 20


def checksums(data, *, content=True):
  return official.IdxFile(
    hashlib.sha256(gzip.compress(data, mtime=0)).hexdigest(),
    hashlib.sha256(data).hexdigest() if content else '',
  )


def test_official_files_are_known_by_either_checksum(
  tmp_path, formats, monkeypatch, capsys
):
  files, _ = formats.idx_files()
  packed = {f'{n}.gz': gzip.compress(d, mtime=0) for n, d in files.items()}
  other = {f'{n}.gz': gzip.compress(d, 1, mtime=9) for n, d in files.items()}
  folders = {
    'as published': formats.tree(tmp_path / 'a', packed),
    'compressed anew': formats.tree(tmp_path / 'b', other),
    'plain': formats.tree(tmp_path / 'c', files),
  }
  for content in (True, False):
    known = {n: checksums(d, content=content) for n, d in files.items()}
    monkeypatch.setitem(official.IDX_FILES, SMALL.name, known)
    for kind, folder in folders.items():
      if content or kind == 'as published':
        read(folder, allow_partial=False)
        assert not capsys.readouterr().err
        continue
      with pytest.raises(
        errors.DataError, match=r'checksum .*not the official'
      ):
        read(folder, allow_partial=False)
      read(folder)
      assert f'{IMAGES}' in capsys.readouterr().err


@pytest.mark.parametrize('name', idx.FILES['train'] + idx.FILES['test'])
def test_one_other_byte_is_not_the_official_file(
  tmp_path, formats, monkeypatch, name
):
  files, _ = formats.idx_files()
  known = {n: checksums(data) for n, data in files.items()}
  monkeypatch.setitem(official.IDX_FILES, SMALL.name, known)
  files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
  for write in (formats.tree, formats.idx):
    folder = write(tmp_path / write.__name__, files)
    with pytest.raises(errors.DataError, match=f'{name}.*not the official'):
      read(folder, allow_partial=False)


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
  # The mean and standard deviation that others normalise with.
  pixels = np.frombuffer(b''.join(item.content for item in train), np.uint8)
  shares = np.bincount(pixels, minlength=256) / pixels.size
  values = np.arange(256) / 255
  mean = shares @ values
  std = np.sqrt(shares @ (values - mean) ** 2)
  np.testing.assert_allclose((mean, std), (0.2860, 0.3530), atol=5e-5)
