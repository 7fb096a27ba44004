import shutil

import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import imagenet


def read(source):
  return imagenet.read_imagenet(str(source), allow_partial=True)


def summary(contents):
  return {
    split: [(i.key, i.labels['label'], archives.read(i.content)) for i in items]
    for split, items in contents.splits.items()
  }


def test_tars_and_trees_give_the_same_labelled_files(tmp_path, formats):
  train, validation, labels = formats.imagenet_files()
  wnids = official.imagenet_wnids()
  tars = formats.imagenet(tmp_path / 'tars', train, validation, labels)
  found = summary(read(tars))
  wanted = [
    (name, wnids.index(wnid), train[wnid][name])
    for wnid in sorted(train)
    for name in sorted(train[wnid])
  ]
  assert found['train'] == wanted
  assert found['validation'] == [
    (name, label, validation[name])
    for name, label in zip(sorted(validation), labels, strict=True)
  ]

  flat = {
    f'train/{wnid}/{name}': data
    for wnid, files in train.items()
    for name, data in files.items()
  }
  in_tree = flat | {f'val/{name}': data for name, data in validation.items()}
  tree = tmp_path / 'tree'
  formats.tree(tree, in_tree)
  formats.devkit(tree / 'ILSVRC2012_devkit_t12.tar.gz', labels)
  assert summary(read(tree)) == found

  by_class = flat | {
    f'val/{wnids[label]}/{name}': validation[name]
    for name, label in zip(sorted(validation), labels, strict=True)
  }
  formats.tree(tmp_path / 'sorted', by_class)
  sorted_found = summary(read(tmp_path / 'sorted'))
  assert sorted_found['train'] == found['train']
  assert sorted(sorted_found['validation']) == sorted(found['validation'])


def test_without_a_devkit_the_labels_are_those_of_tfds(tmp_path, formats):
  source = formats.imagenet(tmp_path / 'tars', *formats.imagenet_files())
  (tmp_path / 'tars' / 'ILSVRC2012_devkit_t12.tar.gz').unlink()
  wnids = official.imagenet_wnids()
  found = [i.labels['label'] for i in read(source).splits['validation']]
  truth = official.imagenet_validation_wnids()[:4]
  assert [wnids[label] for label in found] == truth


def test_an_extracted_devkit_is_read_too(tmp_path, formats):
  source = formats.imagenet(tmp_path / 'tars', *formats.imagenet_files())
  packed = tmp_path / 'tars' / 'ILSVRC2012_devkit_t12.tar.gz'
  shutil.unpack_archive(packed, tmp_path / 'tars', filter='data')
  packed.unlink()
  found = [i.labels['label'] for i in read(source).splits['validation']]
  assert found == formats.imagenet_files()[2]


def test_missing_classes_need_leave(tmp_path, formats):
  source = formats.imagenet(tmp_path / 'tars', *formats.imagenet_files())
  with pytest.raises(errors.DataError, match='3 of 1000 classes'):
    imagenet.read_imagenet(source, allow_partial=False)


def faulty(formats):
  train, validation, labels = formats.imagenet_files()
  return {
    'n00000000 is no synset': ({'n00000000': {}, **train}, validation, labels),
    r'cat\.JPEG has no label': (train, {'cat.JPEG': b''}, labels),
    r'val_00000005\.JPEG has no label': (
      train,
      validation | {'ILSVRC2012_val_00000005.JPEG': b'x'},
      labels,
    ),
  }


def test_faulty_tars_are_refused(tmp_path, formats):
  for number, (message, parts) in enumerate(faulty(formats).items()):
    source = formats.imagenet(tmp_path / str(number), *parts)
    with pytest.raises(errors.DataError, match=message):
      read(source)


def test_a_ground_truth_out_of_range_is_named_by_its_line(tmp_path, formats):
  source = formats.imagenet(tmp_path / 'tars', *formats.imagenet_files())
  packed = tmp_path / 'tars' / 'ILSVRC2012_devkit_t12.tar.gz'
  shutil.unpack_archive(packed, tmp_path / 'tars', filter='data')
  packed.unlink()
  data = tmp_path / 'tars' / 'ILSVRC2012_devkit_t12' / 'data'
  truth = data / 'ILSVRC2012_validation_ground_truth.txt'
  truth.write_text('5\n1001\n3\n4\n')
  with pytest.raises(errors.DataError, match=r'line 2: label 1001 is no'):
    read(source)
  (data / 'meta.mat').write_bytes(b'no matrix')
  with pytest.raises(errors.DataError, match='cannot be read'):
    read(source)


def test_a_damaged_inner_tar_is_named(tmp_path, formats):
  train, validation, labels = formats.imagenet_files()
  source = formats.imagenet(tmp_path / 'tars', train, validation, labels)
  whole = formats.tar_bytes(train['n01440764'])
  formats.tar(
    tmp_path / 'tars' / 'ILSVRC2012_img_train.tar',
    {'n01440764.tar': whole[: len(whole) // 2]},
  )
  with pytest.raises(errors.DataError, match=r'train\.tar.*cannot be read'):
    read(source)
