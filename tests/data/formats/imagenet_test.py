import pytest

from lipnext_jax import errors
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import imagenet


def read(source):
  contents = imagenet.read_imagenet(str(source), allow_partial=True)
  return {
    split: [(i.key, i.labels['label'], archives.read(i.content)) for i in items]
    for split, items in contents.splits.items()
  }


def test_tars_and_folders_give_the_same_labelled_files(tmp_path, formats):
  train, validation, labels = formats.imagenet_files()
  wnids = official.imagenet_wnids()
  found = read(formats.imagenet(tmp_path / 'tars', train, validation))
  assert found == {
    'train': [
      (name, wnids.index(wnid), train[wnid][name])
      for wnid in sorted(train)
      for name in sorted(train[wnid])
    ],
    'validation': [
      (name, label, validation[name])
      for name, label in zip(sorted(validation), labels, strict=True)
    ],
  }
  trained = {
    f'train/{wnid}/{name}': data
    for wnid, files in train.items()
    for name, data in files.items()
  }
  flat = {f'val/{name}': data for name, data in validation.items()}
  by_class = {
    f'val/{wnids[label]}/{name}': validation[name]
    for name, label in zip(sorted(validation), labels, strict=True)
  }
  for name, validated in (('flat', flat), ('by_class', by_class)):
    assert read(formats.tree(tmp_path / name, trained | validated)) == found


FAULTS = {
  'n00000000.tar is not of a synset': ({'n00000000': {'a.JPEG': b''}}, {}),
  r'cat\.JPEG has no label': ({}, {'cat.JPEG': b''}),
  r'val_00050001\.JPEG has no': ({}, {'ILSVRC2012_val_00050001.JPEG': b'x'}),
}


@pytest.mark.parametrize('message', FAULTS)
def test_images_without_a_label_are_refused(tmp_path, formats, message):
  source = formats.imagenet(tmp_path / 'tars', *FAULTS[message])
  with pytest.raises(errors.DataError, match=message):
    read(source)
