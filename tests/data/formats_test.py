import contextlib
import hashlib
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import archives
from lipnext_jax.data import formats
from lipnext_jax.data import official


def read(name, source):
  return formats.read_set(name, str(source), allow_partial=True)


@pytest.mark.parametrize('kind', ['python', 'binary'])
@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_has_the_official_order(tmp_path, make, name, kind):
  *files, truth = make.cifar_files(name)
  files = files[kind == 'binary']
  old = {f'old/{file}': b'not read' for file in files}
  archive = make.cifar(tmp_path, name, files | old, kind)
  with tarfile.open(archive) as tar:
    tar.extractall(tmp_path / 'out', filter='data')
  for source in (tmp_path, tmp_path / 'out'):
    contents = read(name, source)
    assert contents.class_names['label'] == official.class_names(name)
    for split, wanted in truth.items():
      items = zip(contents.splits[split], wanted, strict=True)
      for i, (item, (image, labels)) in enumerate(items):
        assert (item.key, item.labels) == (f'{split}_{i:05d}', labels)
        np.testing.assert_array_equal(item.content, image)
  with pytest.raises(errors.DataError, match=r'train: has \d+ exa.*partial'):
    formats.read_set(name, str(source), allow_partial=False)


def batch(*labels):
  return {b'data': np.zeros((2, 3072), np.uint8), b'labels': [*labels]}


CIFAR_FAULTS = [  # A file, its contents, and what the error says.
  ('data_batch_3', None, 'holds no data_batch_3'),
  ('data_batch_2', b'x', 'data_batch_2: cannot be read'),
  ('data_batch_1', batch(1), 'data_batch_1: cannot be read .*shorter'),
  ('data_batch_4.bin', bytes(3072), r'batch_4\.bin: cannot be read .*3072'),
  ('test_batch', batch(1, 10), 'test_00001: has label 10 of 10 classes'),
  ('test_batch', batch(-1, 1), 'test_00000: has label -1 of 10 classes'),
]


def test_faulty_batches_of_cifar_are_named(tmp_path, make):
  for name, value, message in CIFAR_FAULTS:
    kind = 'binary' if name.endswith('.bin') else 'python'
    files = make.cifar_files('cifar10')[kind == 'binary']
    if isinstance(value, dict):
      value = make.python2_pickle(value)
    files[name] = value
    # Packed anew, with other names of the members.
    members = {f'./{n}': data for n, data in files.items() if data is not None}
    source = tmp_path / f'cifar-10-{kind}.tar.gz'
    make.write_tar(source, members, 'w:gz')
    with pytest.raises(errors.DataError, match=f'^{source}.*{message}'):
      read('cifar10', source)


class Attack:
  """Makes a folder when it is unpickled."""

  def __reduce__(self):
    return os.mkdir, ('owned',)


def test_code_is_refused_where_pickle_would_run_it(tmp_path, make, monkeypatch):
  monkeypatch.chdir(tmp_path)
  attack = pickle.dumps({'data': Attack()})
  files = make.cifar_files('cifar10')[0] | {'data_batch_1': attack}
  source = make.cifar(tmp_path, 'cifar10', files)
  with pytest.raises(errors.DataError, match=r'data_batch_1: .*not allowed'):
    read('cifar10', source)
  assert not os.path.exists('owned')
  pickle.loads(attack)
  assert os.path.exists('owned')  # So the attack is one.


DEBIAN = '/usr/share/datasets/fashion-mnist'  # Of dataset-fashion-mnist.
IMAGES, LABELS = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte'
TEST_IMAGES, TEST_LABELS = 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'


def test_plain_and_compressed_idx_files_are_read_alike(tmp_path, make):
  files, truth = make.idx_files()
  packed = {name: files.pop(name) for name in (IMAGES, TEST_LABELS)}
  source = make.tree(tmp_path, files | make.gzipped(packed))
  contents = read('fashion_mnist', source)
  assert contents.class_names['label'][::9] == ['T-shirt/top', 'Ankle boot']
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    items = contents.splits[split]
    images, labels = truth[prefix]
    np.testing.assert_array_equal([item.content for item in items], images)
    assert [item.labels['label'] for item in items] == labels.tolist()
    assert items[-1].key == f'{split}_{len(labels) - 1:05d}'


def idx_file(count, side=28):
  return struct.pack('>4I', 2051, count, side, side) + bytes(count * side**2)


FILE = 'is cut off, or not an IDX file of n×28×28 bytes'
IDX_FAULTS = [  # A file, its contents, and what the error says after its path.
  (IMAGES, b'', FILE),
  (TEST_IMAGES, idx_file(3, side=32), FILE),
  (IMAGES, idx_file(12)[:-784], FILE),
  (IMAGES, idx_file(12) + b'\0', FILE),
]


def test_malformed_and_missing_idx_files_are_one_line(tmp_path, make):
  files, _ = make.idx_files()
  for name, data, message in IDX_FAULTS:
    folder = make.tree(tmp_path / 'x', files | {name: data})
    with pytest.raises(errors.DataError, match=f'^{folder}/{name}: {message}'):
      read('fashion_mnist', folder)
  packed = make.gzipped(files)
  packed[f'{IMAGES}.gz'] = packed[f'{IMAGES}.gz'][:-9]
  folder = make.tree(tmp_path / 'gz', packed)
  with pytest.raises(errors.DataError, match=f'^{folder}/{IMAGES}.gz: cannot'):
    read('fashion_mnist', folder)
  files[LABELS] = struct.pack('>2i', 2049, 11) + bytes(11)
  with pytest.raises(errors.DataError, match='12 images but 11 labels'):
    read('fashion_mnist', make.tree(tmp_path, files))
  os.remove(tmp_path / LABELS)
  message = (
    rf'none of {LABELS}\.gz, {LABELS}; give the files .*github\.com/'
    'zalandoresearch/fashion-mnist .*Debian package dataset-fashion-mnist'
  )
  with pytest.raises(errors.DataError, match=message):
    read('fashion_mnist', tmp_path)


def test_official_files_are_known_by_either_checksum(
  tmp_path, make, monkeypatch
):
  files, _ = make.idx_files()
  altered = files | {LABELS: files[LABELS][:-1] + b'\0'}
  published, anew = make.gzipped(files), make.gzipped(files, level=1)
  for i, (known, found) in enumerate(
    ((published, published), (files, anew), (files, files), (files, altered))
  ):
    digests = {hashlib.sha256(data).hexdigest() for data in known.values()}
    monkeypatch.setitem(official.IDX_CHECKSUMS, 'kmnist', digests)
    folder = make.tree(tmp_path / str(i), found)
    with (
      pytest.raises(errors.DataError, match='not the official')
      if found is altered
      else contextlib.nullcontext()
    ):
      formats.read_idx('kmnist', folder, allow_partial=False)


@pytest.mark.skipif(not os.path.isdir(DEBIAN), reason='not installed')
def test_debian_has_the_official_fashion_mnist():
  contents = formats.read_set('fashion_mnist', DEBIAN, allow_partial=False)
  for split, labels in (('train', '9003027255'), ('test', '9211614657')):
    first = contents.splits[split][:10]
    assert ''.join(str(item.labels['label']) for item in first) == labels


def files_of(contents):
  """Returns the key, label and bytes of every item, by split."""
  return {
    split: [(i.key, i.labels['label'], archives.read(i.content)) for i in items]
    for split, items in contents.splits.items()
  }


def test_imagenet_is_the_same_from_tars_and_from_folders(tmp_path, make):
  train, validation, labels = make.imagenet_files()
  wnids = official.imagenet_words('labels.txt')
  tars = make.imagenet(tmp_path / 'tars', train, validation)
  found = files_of(read('imagenet', tars))
  wanted, folders = [], {'val/LICENSE': b''}
  for wnid in sorted(train):
    for name, data in train[wnid].items():
      wanted.append((name, wnids.index(wnid), data))
      folders[f'train/{wnid}/{name}'] = data
  assert found['train'] == wanted
  assert found['validation'] == [
    (name, label, validation[name])
    for name, label in zip(validation, labels, strict=True)
  ]
  flat = {f'val/{name}': data for name, data in validation.items()}
  by_class = {
    f'val/{wnids[label]}/{name}': data
    for name, label, data in found['validation']
  }
  for i, validated in enumerate((flat, by_class)):
    source = make.tree(tmp_path / str(i), folders | validated)
    assert files_of(read('imagenet', source)) == found


def test_images_of_imagenet_without_a_label_are_refused(tmp_path, make):
  for train, validation, name in (
    ({'n00000000': {'a.JPEG': b''}}, {}, r'n00000000\.tar/a\.JPEG'),
    ({}, {'cat.JPEG': b''}, r'cat\.JPEG'),
    ({}, {'ILSVRC2012_val_00050001.JPEG': b'x'}, r'00050001\.JPEG'),
  ):
    source = make.imagenet(tmp_path / 'tars', train, validation)
    with pytest.raises(errors.DataError, match=f'{name}: belongs to none'):
      read('imagenet', source)


def test_labels_of_tiny_imagenet_are_positions_in_wnids(tmp_path, make):
  files = make.tiny_files()
  make.tree(tmp_path / 'out' / 'tiny-imagenet-200', files)
  make.tree(tmp_path / 'renamed', files)
  for source in (make.tiny(tmp_path), tmp_path / 'out', tmp_path / 'renamed'):
    contents = read('tiny_imagenet', source)
    assert contents.class_names['label'] == make.TINY_WNIDS
    train, validation = files_of(contents).values()
    assert [label for _, label, _ in train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for key, label, data in train:
      wnid = make.TINY_WNIDS[label]
      assert data == files[f'train/{wnid}/images/{key}']
    assert validation == [
      (f'val_{i}.JPEG', i % 3, files[f'val/images/val_{i}.JPEG'])
      for i in (0, 1, 2, 10)
    ]


TINY_FAULTS = {
  'does not list 200 classes': {'wnids.txt': b'n01\nn02\n'},
  r'val_0\.JPEG is of no class of wnids': {
    'val/val_annotations.txt': b'val_0.JPEG\tn000\t0\t0\t1\t1'
  },
  r'holds no val/images/val_2\.JPEG': {'val/images/val_2.JPEG': None},
  r'n000_0\.JPEG is of no class': {'train/n000/images/n000_0.JPEG': b'x'},
}


def test_faulty_archives_of_tiny_imagenet_are_refused(tmp_path, make):
  for message, changes in TINY_FAULTS.items():
    files = make.tiny_files() | changes
    files = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(errors.DataError, match=message):
      read('tiny_imagenet', make.tiny(tmp_path, files))
