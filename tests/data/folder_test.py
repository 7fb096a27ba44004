import os
import pickle

import numpy as np
from PIL import Image
import pytest

from lipnext_jax import errors
from lipnext_jax.data import folder

CLASSES = ['cat', 'dog']


@pytest.fixture
def tree(tmp_path, formats):
  files = {}
  for number, name in enumerate(CLASSES):
    for i, suffix in enumerate(('png', 'PNG', 'jpeg')):
      image = Image.fromarray(formats.pixels(10 * number + i, 8 + i, 9))
      kind = 'JPEG' if suffix == 'jpeg' else 'PNG'
      files[f'train/{name}/{i}.{suffix}'] = formats.encode(image, kind)
  files['test/dog/x.png'] = files['train/dog/0.png']
  files['train/cat/.DS_Store'] = b'hidden'
  return formats.tree(tmp_path, files)


def labels(source):
  return [int(source[i]['label']) for i in range(len(source))]


def test_classes_are_sorted_folders_and_shared_by_the_splits(tree, formats):
  assert folder.list_classes(f'{tree}/train') == CLASSES
  train = folder.FolderSource(f'{tree}/train', CLASSES)
  assert labels(train) == [0] * 3 + [1] * 3
  np.testing.assert_array_equal(train[4]['image'], formats.pixels(11, 9, 9))
  # 'dog' is the only class there, and still label 1.
  assert folder.find_split(tree, ('test', 'val')) == f'{tree}/test'
  assert labels(folder.FolderSource(f'{tree}/test', CLASSES)) == [1]
  again = pickle.loads(pickle.dumps(train))
  np.testing.assert_array_equal(again[5]['image'], train[5]['image'])
  os.rename(f'{tree}/test', f'{tree}/val')
  assert folder.find_split(tree, ('test', 'val')) == f'{tree}/val'


def test_what_is_no_set_of_images_is_refused(tree):
  def refused(match, split='train', call=folder.FolderSource):
    arguments = (CLASSES,) if call is folder.FolderSource else ()
    with pytest.raises(errors.DataError, match=match):
      call(f'{tree}/{split}', *arguments)

  with pytest.raises(errors.DataError, match='no folder x or y'):
    folder.find_split(tree, ('x', 'y'))
  refused('holds 1 folders', 'test', folder.list_classes)
  refused('holds no folders of images', 'train/cat')
  with open(f'{tree}/train/dog/notes.txt', 'w'):
    refused(r'dog/notes\.txt: is no \.bmp')
  os.mkdir(f'{tree}/train/eel')
  os.rename(f'{tree}/train/dog', f'{tree}/dogs')
  refused('eel: is no class')
  os.rename(f'{tree}/train/eel', f'{tree}/train/dog')
  refused('dog: holds no images')
  os.mkfifo(f'{tree}/train/dog/a.png')
  refused(r'a\.png: is no regular file')


def test_a_damaged_image_is_named_when_it_is_read(tree):
  source = folder.FolderSource(f'{tree}/train', CLASSES)
  os.truncate(f'{tree}/train/dog/2.jpeg', 300)
  with pytest.raises(errors.DataError, match=r'train/dog/2\.jpeg: ends after'):
    source[5]
  with open(f'{tree}/train/dog/2.jpeg', 'wb') as file:
    file.write(b'<html>' * 500)
  source = folder.FolderSource(f'{tree}/train', CLASSES)
  with pytest.raises(errors.DataError, match=r'2\.jpeg: is no JPEG'):
    source[5]
