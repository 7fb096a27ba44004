import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import cifar


def read10(source):
  return cifar.read_cifar10(str(source), allow_partial=True)


def assert_items(items, truth):
  assert len(items) == len(truth)
  for item, (image, label) in zip(items, truth, strict=True):
    assert item.labels['label'] == label
    planes = np.frombuffer(item.content, np.uint8).reshape(3, 32, 32)
    np.testing.assert_array_equal(planes.transpose(1, 2, 0), image)


def test_the_archive_and_its_folder_hold_the_official_order(tmp_path, formats):
  files, truth = formats.cifar10_files()
  formats.cifar10(tmp_path)
  formats.tree(tmp_path / 'out' / 'cifar-10-batches-py', files)
  for source in (
    tmp_path,
    tmp_path / 'cifar-10-python.tar.gz',
    tmp_path / 'out',
    tmp_path / 'out' / 'cifar-10-batches-py',
  ):
    contents = read10(source)
    for split in ('train', 'test'):
      assert_items(contents.splits[split], truth[split])
    keys = [item.key for item in contents.splits['train']]
    assert keys[:2] == ['train_00000', 'train_00001']
    assert len(set(keys)) == len(keys) == 20
    assert contents.class_names['label'] == official.class_names('cifar10')


def test_cifar_100_has_fine_and_coarse_labels(tmp_path, formats):
  _, truth = formats.cifar100_files()
  source = formats.cifar100(tmp_path)
  contents = cifar.read_cifar100(source, allow_partial=True)
  for split in ('train', 'test'):
    assert_items(contents.splits[split], truth[split])
    coarse = [item.labels['coarse_label'] for item in contents.splits[split]]
    assert coarse == list(range(6))


def replaced(formats, name, value):
  files, _ = formats.cifar10_files()
  return {**files, name: value}


def faulty(formats):
  row = np.zeros((2, 3072), np.uint8)
  swapped = official.class_names('cifar10')[::-1]
  return {
    'holds no data_batch_3': {
      name: data
      for name, data in formats.cifar10_files()[0].items()
      if name != 'data_batch_3'
    },
    r'data_batch_2: .*malformed': replaced(formats, 'data_batch_2', b'x'),
    r'test_batch: .*3072': replaced(
      formats,
      'test_batch',
      formats.pickle({b'data': row[:, :3000], b'labels': [1, 2]}),
    ),
    r'test_batch: `labels` is no list of 2': replaced(
      formats, 'test_batch', formats.pickle({b'data': row, b'labels': [1]})
    ),
    r'test_batch: `data`': replaced(
      formats, 'test_batch', formats.pickle({b'labels': [1]})
    ),
    r'batches\.meta: label_names is not the official': replaced(
      formats,
      'batches.meta',
      formats.pickle({b'label_names': [name.encode() for name in swapped]}),
    ),
  }


def test_faulty_batches_are_named(tmp_path, formats):
  for number, (message, files) in enumerate(faulty(formats).items()):
    directory = tmp_path / str(number)
    directory.mkdir()
    source = formats.cifar10(directory, files)
    with pytest.raises(errors.DataError, match=message) as info:
      read10(source)
    assert source in str(info.value)


def test_a_batch_that_runs_code_is_refused(tmp_path, formats):
  attack = b'cos\nsystem\n(S"touch %s"\ntR.' % str(tmp_path / 'owned').encode()
  source = formats.cifar10(tmp_path, replaced(formats, 'data_batch_1', attack))
  with pytest.raises(errors.DataError, match=r'data_batch_1: .*system'):
    read10(source)
  assert not (tmp_path / 'owned').exists()
