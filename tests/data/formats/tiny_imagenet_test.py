import pytest

from lipnext_jax import errors
from lipnext_jax.data.formats import tiny_imagenet


def read(source):
  return tiny_imagenet.read_tiny_imagenet(str(source), allow_partial=True)


def test_labels_are_positions_in_wnids(tmp_path, formats):
  files = formats.tiny_files()
  formats.tree(tmp_path / 'out' / 'tiny-imagenet-200', files)
  formats.tree(tmp_path / 'renamed', files)
  for source in (
    formats.tiny(tmp_path),
    tmp_path / 'out',
    tmp_path / 'renamed',
  ):
    contents = read(source)
    assert contents.class_names['label'] == formats.TINY_WNIDS
    train = contents.splits['train']
    labels = [item.labels['label'] for item in train]
    assert labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for item in train:
      wnid = formats.TINY_WNIDS[item.labels['label']]
      name = f'train/{wnid}/images/{item.key}'
      assert item.content == files[name]
    validation = contents.splits['validation']
    keys = [item.key for item in validation]
    assert keys == ['val_0.JPEG', 'val_1.JPEG', 'val_2.JPEG', 'val_10.JPEG']
    assert [item.labels['label'] for item in validation] == [0, 1, 2, 1]


FAULTS = {
  'holds no wnids.txt': {'wnids.txt': None},
  'holds no val/val_annotations.txt': {'val/val_annotations.txt': None},
  'does not list 200 classes': {'wnids.txt': b'n01\nn02\n'},
  r'val_0\.JPEG is of no class of wnids': {
    'val/val_annotations.txt': b'val_0.JPEG\tn000\t0\t0\t1\t1'
  },
  r'holds no val/images/val_2\.JPEG': {'val/images/val_2.JPEG': None},
  r'n000_0\.JPEG is of no class': {'train/n000/images/n000_0.JPEG': b'x'},
}


@pytest.mark.parametrize('message', FAULTS)
def test_faulty_archives_are_refused(tmp_path, formats, message):
  files = formats.tiny_files() | FAULTS[message]
  files = {name: data for name, data in files.items() if data is not None}
  with pytest.raises(errors.DataError, match=message):
    read(formats.tiny(tmp_path, files))
