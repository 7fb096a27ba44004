import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest

from lipnext_jax.data import views

IMAGES = np.arange(360).astype(np.uint8).reshape(6, 4, 5, 3)
LABELS = np.arange(6) % 3


def labels_of(source):
  return [int(source[i]['label']) for i in range(len(source))]


def images_of(source):
  return [source[i]['image'] for i in range(len(source))]


def test_a_view_has_the_chosen_examples_their_names_and_the_change():
  source = views.ArraySource(IMAGES, np.arange(6))
  source.names = lambda: [f'{i}.png' for i in range(6)]

  def change(example):
    return {**example, 'label': example['label'] + 10}

  view = views.View(views.View(source, [4, 2, 0], change), [2, 0])
  # Worker processes get views, functions included.
  for one in (view, cloudpickle.loads(cloudpickle.dumps(view))):
    assert labels_of(one) == [10, 14]
    np.testing.assert_array_equal(one[1]['image'], IMAGES[4])
    assert one.names() == ['0.png', '4.png']
  assert views.View(views.ArraySource(IMAGES, LABELS), [0]).names() == []


def test_a_cached_source_reads_each_example_once_and_no_fault_twice():
  reads = []

  def read(example):
    reads.append(int(example['label']))
    if len(reads) == 1:
      raise OSError('a read that fails once')
    return example

  source = views.ArraySource(IMAGES, np.arange(6))
  cached = views.Cached(views.View(source, range(6), read))
  with pytest.raises(OSError, match='fails once'):
    cached[0]
  for _ in range(2):
    np.testing.assert_array_equal(images_of(cached), IMAGES)
    assert labels_of(cached) == [*range(6)]
  assert reads == [0, *range(6)]


def test_every_class_is_split_by_the_same_share():
  labels = np.repeat([3, 1, 7, 5], [40, 20, 2, 1])
  kept, held = views.split_classes(labels, 0.1, seed=0)
  assert sorted([*kept, *held]) == list(range(63))
  # At least one of two or more, and none of a single one.
  counts = np.bincount(labels[held], minlength=8)
  assert counts[[3, 1, 7, 5]].tolist() == [4, 2, 1, 0]
  again, other = (views.split_classes(labels, 0.1, seed)[1] for seed in (0, 1))
  assert held.tolist() == again.tolist() != other.tolist()


def write(path, **arrays):
  """Writes an .npz file, and the folder that it unzips to."""
  np.savez(path / 'x.npz', **arrays)
  with zipfile.ZipFile(path / 'x.npz') as archive:
    archive.extractall(path / 'x')
  return str(path / 'x.npz'), str(path / 'x')


def test_npz_files_and_folders_hold_the_same_examples(tmp_path):
  paths = write(tmp_path, image=np.asfortranarray(IMAGES), label=LABELS)
  for path in paths:
    source = views.NpzSource(path)
    pickled = pickle.dumps(source)
    assert len(pickled) < 500  # Worker processes get the path.
    for copy in (source, pickle.loads(pickled)):
      assert labels_of(copy) == LABELS.tolist()
      np.testing.assert_array_equal(images_of(copy), IMAGES)
      assert copy[0]['label'].dtype == np.int32
      assert type(copy[0]['image']) is np.ndarray
  images = views.NpzSource(paths[1]).images  # Mapped, not read.
  assert isinstance(images, np.memmap)
  assert not images.flags.writeable


def test_malformed_and_cut_arrays_are_refused(tmp_path):
  for arrays, reason in (
    ({'label': LABELS}, 'image'),  # First: no file is left of another.
    ({'image': IMAGES / 255, 'label': LABELS}, 'float64'),
    ({'image': IMAGES[..., 0], 'label': LABELS}, '`image`'),
    ({'image': IMAGES[:0], 'label': LABELS[:0]}, '`image`'),
    ({'image': IMAGES, 'label': LABELS[1:]}, '`label`'),
    ({'image': IMAGES, 'label': LABELS / 1}, '`label`'),
    ({'image': IMAGES, 'label': LABELS - 1}, 'label -1'),
    ({'image': np.array([{}]), 'label': LABELS[:1]}, 'cannot be'),  # Pickles.
  ):
    for path in write(tmp_path, **arrays):
      with pytest.raises(ValueError, match=reason):
        views.NpzSource(path)
  paths = write(tmp_path, image=IMAGES, label=LABELS)
  for path, file in zip(paths, ('x.npz', 'x/image.npy'), strict=True):
    for size in (200, 10, 0):
      os.truncate(tmp_path / file, size)
      with pytest.raises(ValueError, match='cannot be read'):
        views.NpzSource(path)
