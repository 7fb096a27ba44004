import cloudpickle
import numpy as np
import pytest

from lipnext_jax.data import views


class Named(views.ArraySource):
  """A source whose examples have names."""

  def names(self):
    return [f'{i}.png' for i in range(len(self))]


def make(count, *shape):
  images = np.random.default_rng(0).integers(256, size=(count, *shape))
  return images.astype(np.uint8)


def test_a_view_has_the_chosen_examples_their_names_and_the_change():
  source = Named(make(5, 2, 2, 1), np.arange(5))

  def change(example):
    return {**example, 'label': example['label'] + 10}

  view = views.View(views.View(source, [4, 2, 0], change), [2, 0])
  # Worker processes get views, functions included.
  for one in (view, cloudpickle.loads(cloudpickle.dumps(view))):
    assert [int(one[i]['label']) for i in range(len(one))] == [10, 14]
    np.testing.assert_array_equal(one[1]['image'], source[4]['image'])
    assert one.names() == ['0.png', '4.png']
  nameless = views.ArraySource(make(5, 2, 2, 1), np.arange(5))
  assert views.View(nameless, [0]).names() == []


def test_a_cached_source_reads_each_example_once_and_no_fault_twice():
  images = make(4, 3, 3, 1)
  reads = []

  class Counted(Named):
    def __getitem__(self, index):
      reads.append(index)
      if len(reads) == 1:
        raise OSError('a read that fails once')
      return super().__getitem__(index)

  source = Counted(images, np.array([0, 5, 1, 2]))
  cached = views.Cached(source)
  with pytest.raises(OSError, match='fails once'):
    cached[0]
  for _ in range(2):
    for i in range(len(cached)):
      np.testing.assert_array_equal(cached[i]['image'], images[i])
      assert cached[i]['label'] == [0, 5, 1, 2][i]
  assert reads == [0, 0, 1, 2, 3]
  assert cached.names() == source.names()


def test_a_resized_view_keeps_everything_but_the_image():
  source = Named(make(3, 9, 12, 3), np.arange(3))
  resized = views.resized(source, resize=6, size=4)
  assert {resized[i]['image'].shape for i in range(3)} == {(4, 4, 3)}
  assert [int(resized[i]['label']) for i in range(3)] == [0, 1, 2]
  assert resized.names() == source.names()


def test_every_class_is_split_by_the_same_share():
  labels = np.repeat([3, 1, 7, 5], [40, 20, 2, 1])
  kept, held = views.split_classes(labels, 0.1, seed=0)
  assert sorted([*kept, *held]) == list(range(63))
  # At least one of two or more, and none of a single one.
  counts = np.bincount(labels[held], minlength=8)
  assert counts[[3, 1, 7, 5]].tolist() == [4, 2, 1, 0]
  again, other = (views.split_classes(labels, 0.1, seed)[1] for seed in (0, 1))
  assert held.tolist() == again.tolist() != other.tolist()


def test_synthetic_is_a_pure_function_of_the_seed_and_the_index():
  one, two, other = (
    views.SyntheticSource(5, (6, 6, 2), 3, seed) for seed in (0, 0, 1)
  )
  for i in range(len(one)):
    np.testing.assert_array_equal(one[i]['image'], two[i]['image'])
    assert not np.array_equal(one[i]['image'], other[i]['image'])
    assert one[i]['image'].dtype == np.uint8
    assert one[i]['label'] == i % 3
