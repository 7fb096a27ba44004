import os
import pickle

import numpy as np
from PIL import Image
import pytest

from lipnext_jax import errors
from lipnext_jax.data import folder


@pytest.fixture
def tree(tmp_path, formats):
  files = {}
  for number, name in enumerate(('cat', 'dog')):
    for i, suffix in enumerate(('png', 'PNG', 'jpeg')):
      image = Image.fromarray(formats.pixels(10 * number + i, 8 + i, 9))
      kind = 'JPEG' if suffix == 'jpeg' else 'PNG'
      files[f'train/{name}/{i}.{suffix}'] = formats.encode(image, kind)
  files['test/dog/x.png'] = files['train/dog/0.png']
  files['train/cat/.DS_Store'] = b'hidden'
  return formats.tree(tmp_path, files)


def test_classes_are_sorted_folders_and_shared_by_the_splits(tree, formats):
  assert folder.list_classes(f'{tree}/train') == ['cat', 'dog']
  train = folder.FolderSource(f'{tree}/train', ['cat', 'dog'])
  assert [int(train[i]['label']) for i in range(len(train))] == [0] * 3 + [
    1
  ] * 3
  np.testing.assert_array_equal(train[4]['image'], formats.pixels(11, 9, 9))
  # 'dog' is the only class there, and still label 1.
  test = folder.FolderSource(f'{tree}/test', ['cat', 'dog'])
  assert [int(test[i]['label']) for i in range(len(test))] == [1]
  again = pickle.loads(pickle.dumps(train))
  np.testing.assert_array_equal(again[5]['image'], train[5]['image'])


def test_the_test_split_may_be_called_val(tree):
  assert folder.find_split(tree, ('test', 'val')) == f'{tree}/test'
  os.rename(f'{tree}/test', f'{tree}/val')
  assert folder.find_split(tree, ('test', 'val')) == f'{tree}/val'
  with pytest.raises(errors.DataError, match='no folder x or y'):
    folder.find_split(tree, ('x', 'y'))


def test_what_is_no_image_by_its_name_is_refused(tree):
  with open(f'{tree}/train/dog/notes.txt', 'w'):
    pass
  with pytest.raises(errors.DataError, match=r'dog/notes\.txt: is no \.bmp'):
    folder.FolderSource(f'{tree}/train', ['cat', 'dog'])


def test_a_pipe_an_empty_class_and_an_unknown_one_are_refused(tree):
  def listed():
    return folder.FolderSource(f'{tree}/train', ['cat', 'dog'])

  os.mkdir(f'{tree}/train/eel')
  with pytest.raises(errors.DataError, match='eel: is no class'):
    listed()
  os.rename(f'{tree}/train/dog', f'{tree}/dogs')
  os.rename(f'{tree}/train/eel', f'{tree}/train/dog')
  with pytest.raises(errors.DataError, match='dog: holds no images'):
    listed()
  os.mkfifo(f'{tree}/train/dog/a.png')
  with pytest.raises(errors.DataError, match=r'a\.png: is no regular file'):
    listed()
  with pytest.raises(errors.DataError, match='holds 1 folders'):
    folder.list_classes(f'{tree}/test')
  with pytest.raises(errors.DataError, match='holds no folders of images'):
    folder.FolderSource(f'{tree}/train/cat', ['cat', 'dog'])


def test_a_damaged_image_is_named_when_it_is_read(tree):
  source = folder.FolderSource(f'{tree}/train', ['cat', 'dog'])
  os.truncate(f'{tree}/train/dog/2.jpeg', 300)
  with pytest.raises(errors.DataError, match=r'train/dog/2\.jpeg: ends after'):
    source[5]
  with open(f'{tree}/train/dog/2.jpeg', 'wb') as file:
    file.write(b'<html>' * 500)
  source = folder.FolderSource(f'{tree}/train', ['cat', 'dog'])
  with pytest.raises(errors.DataError, match=r'2\.jpeg: is no JPEG'):
    source[5]
