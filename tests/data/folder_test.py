import os
import pickle

import numpy as np
from PIL import Image
import pytest

from lipnext_jax import errors
from lipnext_jax.data import folder

CLASSES = ['cat', 'dog']


@pytest.fixture
def tree(tmp_path, make):
  """A folder of two classes with images at two depths, and hidden files."""
  files = {}
  for number, name in enumerate(CLASSES):
    for i, path in enumerate(('0.png', '1.PNG', 'deep/er/2.jpeg')):
      image = Image.fromarray(make.pixels(10 * number + i, 8 + i, 9))
      kind = 'JPEG' if path.endswith('jpeg') else 'PNG'
      files[f'train/{name}/{path}'] = make.encode(image, kind)
  files['test/dog/x.png'] = files['train/dog/0.png']
  for hidden in (
    'train/cat/.DS_Store',
    'train/cat/Thumbs.db',
    'train/.ipynb_checkpoints/0.png',
    'train/dog/.cache/0.png',
    'test/__MACOSX/0.png',
    'train/README.md',
    'labels.csv',
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
  before = 'test'
  for name in ('val', 'validation'):
    os.rename(f'{tree}/{before}', f'{tree}/{name}')
    assert folder.open_folder(tree)[1].names() == [f'{name}/dog/x.png']
    before = name
  # No test split, and no splits at all.
  os.rename(f'{tree}/{before}', f'{tree}/.val')
  assert folder.open_folder(tree)[1] is None
  flat = folder.open_folder(f'{tree}/train')
  assert flat[1] is None
  assert flat[0].names()[0] == 'cat/0.png'


def test_links_are_followed_once(tree):
  os.symlink(f'{tree}/train/dog', f'{tree}/train/eel')
  os.symlink(f'{tree}/train/dog', f'{tree}/train/dog/deep/loop')
  train, _, classes, _ = folder.open_folder(tree)
  assert classes == [*CLASSES, 'eel']
  assert train.read_labels().tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_all_problems_are_listed_at_once(tree, capsys):
  for path in ('train/dog/notes.txt', 'train/loose.png', 'train/cat/empty.png'):
    open(f'{tree}/{path}', 'w').close()
  os.truncate(f'{tree}/train/dog/deep/er/2.jpeg', 300)
  os.mkfifo(f'{tree}/train/dog/a.png')
  os.makedirs(f'{tree}/test/cow')
  os.mkdir(f'{tree}/train/eel')
  with pytest.raises(errors.DataError) as caught:
    folder.open_folder(tree)
  lines = capsys.readouterr().err.splitlines()
  for path, problem in (
    ('train/dog/notes.txt', 'is not a .bmp'),
    ('train/loose.png', 'is not in the folder of a class'),
    ('train/cat/empty.png', 'is empty'),
    ('train/dog/deep/er/2.jpeg', 'cannot be decoded'),
    ('train/dog/a.png', 'is not a regular file'),
    ('test/cow', 'is not a class of the training images'),
    ('train/eel', 'holds no images'),
  ):
    assert any(f'{tree}/{path}: {problem}' in line for line in lines), path
  assert len(lines) == 7
  said = str(caught.value)
  for part in ('7 problems', 'train/CLASS/IMAGE', 'skip_bad'):
    assert part in said
  # Files can be left out; folders have to be mended.
  with pytest.raises(errors.DataError, match='3 problems') as caught:
    folder.open_folder(tree, skip_bad=True)
  assert 'skip_bad' not in str(caught.value)
  os.remove(f'{tree}/train/loose.png')
  os.rmdir(f'{tree}/test/cow')
  os.rmdir(f'{tree}/train/eel')
  train, *_, notes = folder.open_folder(tree, skip_bad=True)
  assert train.read_labels().tolist() == [0] * 3 + [1] * 2
  assert '4 files left out' in notes[0]


def test_other_layouts_come_with_the_one_expected(tree):
  one_class = f'holds 1 folders of images, .*give {tree}/train'
  for old, new, opened, problem in (
    ('train/dog', 'dogs', '', 'train: holds 1 folders'),
    ('train', 'x', '', 'needs .*train beside it'),
    ('test/dog', 'test/.dog', '', 'test: holds no folders of images'),
    ('train', 'train', 'train/dog', one_class),  # That below the class.
  ):
    os.rename(f'{tree}/{old}', f'{tree}/{new}')
    with pytest.raises(errors.DataError, match=problem) as caught:
      folder.open_folder(os.path.join(tree, opened))
    assert 'Expected: train/CLASS/IMAGE' in str(caught.value)
    os.rename(f'{tree}/{new}', f'{tree}/{old}')


def test_an_image_damaged_later_is_named_when_it_is_read(tree):
  train, *_ = folder.open_folder(tree)
  os.truncate(f'{tree}/train/dog/deep/er/2.jpeg', 300)
  with pytest.raises(errors.DataError, match=r'2\.jpeg: cannot be decoded'):
    _ = train[5]
