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


@pytest.fixture
def tars(tmp_path, formats):
  return formats.imagenet(tmp_path / 'tars', *formats.imagenet_files()[:2])


def test_tars_and_trees_give_the_same_labelled_files(tmp_path, formats, tars):
  train, validation, labels = formats.imagenet_files()
  wnids = official.imagenet_wnids()
  found = summary(read(tars))
  assert found['train'] == [
    (name, wnids.index(wnid), train[wnid][name])
    for wnid in sorted(train)
    for name in sorted(train[wnid])
  ]
  assert found['validation'] == [
    (name, label, validation[name])
    for name, label in zip(sorted(validation), labels, strict=True)
  ]

  flat = {
    f'train/{wnid}/{name}': data
    for wnid, files in train.items()
    for name, data in files.items()
  }
  tree = tmp_path / 'tree'
  formats.tree(
    tree, flat | {f'val/{n}': data for n, data in validation.items()}
  )
  assert summary(read(tree)) == found

  by_class = flat | {
    f'val/{wnids[label]}/{name}': validation[name]
    for name, label in zip(sorted(validation), labels, strict=True)
  }
  formats.tree(tmp_path / 'sorted', by_class)
  sorted_found = summary(read(tmp_path / 'sorted'))
  assert sorted_found['train'] == found['train']
  assert sorted(sorted_found['validation']) == sorted(found['validation'])


def test_missing_classes_need_leave(tmp_path, formats):
  train, validation, _ = formats.imagenet_files()
  (wnid, files), *_ = train.items()
  tree = {f'train/{wnid}/{name}': data for name, data in files.items()}
  formats.tree(tmp_path, tree | {f'val/{n}': d for n, d in validation.items()})
  with pytest.raises(errors.DataError, match='has 1 of 1000 classes'):
    imagenet.read_imagenet(str(tmp_path), allow_partial=False)


def test_faulty_tars_are_refused(tmp_path, formats):
  train, validation, _ = formats.imagenet_files()
  odd = {'ILSVRC2012_val_00050001.JPEG': b'x'}
  for number, (message, *parts) in enumerate(
    (
      ('n00000000 is not a synset', {'n00000000': {}, **train}, validation),
      (r'cat\.JPEG has no label', train, {'cat.JPEG': b''}),
      (r'val_00050001\.JPEG has no label', train, validation | odd),
    )
  ):
    source = formats.imagenet(tmp_path / str(number), *parts)
    with pytest.raises(errors.DataError, match=message):
      read(source)


def test_a_damaged_inner_tar_is_named(tmp_path, formats, tars):
  whole = formats.tar_bytes(formats.imagenet_files()[0]['n01440764'])
  formats.tar(
    tmp_path / 'tars' / 'ILSVRC2012_img_train.tar',
    {'n01440764.tar': whole[: len(whole) // 2]},
  )
  with pytest.raises(errors.DataError, match=r'n01440764\.tar: cannot be read'):
    read(tars)
