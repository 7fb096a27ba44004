import os
import pickle

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import folder
from lipnext_jax.data import images

CLASSES = ['cat', 'dog']


@pytest.fixture
def tree(tmp_path, make):
  """A folder of two classes with images at two depths, and hidden files."""
  files = {'test/dog/x.png': images.encode_png(make.pixels(0, 8, 9))}
  for number, name in enumerate(CLASSES):
    for i, path in enumerate(('0.png', '1.PNG')):
      pixels = make.pixels(10 * number + i, 8 + i, 9)
      files[f'train/{name}/{path}'] = images.encode_png(pixels)
    files[f'train/{name}/deep/er/2.jpeg'] = make.jpeg(number)
  for hidden in (
    'train/cat/.DS_Store',
    'train/cat/Thumbs.db',
    'train/.ipynb_checkpoints/0.png',
    'train/dog/.cache/0.png',
    'test/__MACOSX/0.png',
    'train/README.md',
  ):
    files[hidden] = b'no image'
  return make.tree(tmp_path, files)


def test_classes_are_sorted_folders_and_shared_by_the_splits(tree, make):
  train, test, classes, notes = folder.open_folder(tree)
  assert (classes, notes) == (CLASSES, ())
  labels = [int(example['label']) for example in train]
  assert labels == train.read_labels().tolist() == [0] * 3 + [1] * 3
  np.testing.assert_array_equal(train[4]['image'], make.pixels(11, 9, 9))
  names = train.names()[2:4]
  assert names == ['train/cat/deep/er/2.jpeg', 'train/dog/0.png']
  # 'dog' is the only class there, and still label 1.
  assert test.read_labels().tolist() == [1]
  again = pickle.loads(pickle.dumps(train))
  np.testing.assert_array_equal(again[5]['image'], train[5]['image'])
  for old, new in (('test', 'val'), ('val', 'validation')):
    os.rename(f'{tree}/{old}', f'{tree}/{new}')
    assert folder.open_folder(tree)[1].names() == [f'{new}/dog/x.png']
  # No test split, and no splits at all.
  os.rename(f'{tree}/validation', f'{tree}/.val')
  assert folder.open_folder(tree)[1] is None
  flat, test, *_ = folder.open_folder(f'{tree}/train')
  assert (flat.names()[0], test) == ('cat/0.png', None)


def test_links_are_followed_once(tree):
  os.symlink(f'{tree}/train/dog', f'{tree}/train/eel')
  os.symlink(f'{tree}/train/dog', f'{tree}/train/dog/deep/loop')
  os.symlink(f'{tree}/train/dog/deep/er', f'{tree}/train/cat/more')
  train, _, classes, _ = folder.open_folder(tree)
  assert classes == [*CLASSES, 'eel']
  assert train.read_labels().tolist() == [0] * 4 + [1] * 3 + [2] * 3


def test_all_problems_are_listed_at_once(tree, capsys):
  for path in ('train/dog/notes.txt', 'train/loose.png', 'train/cat/empty.png'):
    open(f'{tree}/{path}', 'w').close()
  os.truncate(f'{tree}/train/dog/deep/er/2.jpeg', 300)
  os.makedirs(f'{tree}/test/cow')
  os.mkdir(f'{tree}/train/eel')
  summary = '6 problems, first .* train/CLASS/IMAGE .*dataset.skip_bad=True'
  with pytest.raises(errors.DataError, match=summary):
    folder.open_folder(tree)
  lines = capsys.readouterr().err.splitlines()
  for path, problem in (
    ('train/dog/notes.txt', 'is not a .bmp'),
    ('train/loose.png', 'is not in the folder of a class'),
    ('train/cat/empty.png', 'is empty'),
    ('train/dog/deep/er/2.jpeg', 'cannot be decoded'),
    ('test/cow', 'is not a class of the training images'),
    ('train/eel', 'holds no images'),
  ):
    assert any(f'{tree}/{path}: {problem}' in line for line in lines), path
  assert len(lines) == 6
  # Files can be left out; folders have to be mended.
  with pytest.raises(errors.DataError, match='3 problems') as caught:
    folder.open_folder(tree, skip_bad=True)
  assert 'skip_bad' not in str(caught.value)
  os.remove(f'{tree}/train/loose.png')
  os.rmdir(f'{tree}/test/cow')
  os.rmdir(f'{tree}/train/eel')
  train, *_, notes = folder.open_folder(tree, skip_bad=True)
  assert train.read_labels().tolist() == [0] * 3 + [1] * 2
  assert '3 files left out' in notes[0]


def test_other_layouts_come_with_the_one_expected(tree):
  for old, new, opened, problem in (
    ('train/dog', 'dogs', '', 'train: holds 1 folders'),
    ('train', 'x', '', 'needs .*train beside it'),
    ('test/dog', 'test/.dog', '', 'test: holds no folders of images'),
    ('train', 'train', 'train/dog', f'holds 1 .*; .*give {tree}/train'),
  ):
    os.rename(f'{tree}/{old}', f'{tree}/{new}')
    wanted = f'{problem}.* Expected: train/CLASS/IMAGE'
    with pytest.raises(errors.DataError, match=wanted):
      folder.open_folder(os.path.join(tree, opened))
    os.rename(f'{tree}/{new}', f'{tree}/{old}')


def test_an_image_damaged_later_is_named_when_it_is_read(tree):
  train, *_ = folder.open_folder(tree)
  os.truncate(f'{tree}/train/dog/deep/er/2.jpeg', 300)
  with pytest.raises(errors.DataError, match=r'2\.jpeg: cannot be decoded'):
    _ = train[5]
