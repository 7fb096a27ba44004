import itertools

import numpy as np

from lipnext_jax.data import pipeline
from lipnext_jax.data import sources
from lipnext_jax.data import transforms


def source(length):
  """Examples that can be told apart by their label."""
  images = np.zeros((length, 4, 4, 1), np.uint8)
  images[:, 0, 0, 0] = np.arange(length)
  images[:, 1, 1, 0] = 100
  return sources.ArraySource(images, np.arange(length))


def take(count, length=10, augment=(), **options):
  options = {'seed': 0, 'batch_size': 4} | options
  stream = pipeline.train_batches(source(length), augment, **options)
  return list(itertools.islice(stream, count))


def labels(batches):
  return np.concatenate([batch['label'] for batch in batches]).tolist()


def test_every_epoch_is_a_permutation_and_no_example_is_dropped():
  seen = labels(take(5))  # 20 examples of 10: two epochs across batches.
  assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
  assert seen[:10] != seen[10:]
  assert seen[:10] != list(range(10))


def test_order_is_a_function_of_the_seed():
  assert labels(take(5)) == labels(take(5))
  assert labels(take(5)) != labels(take(5, seed=1))


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_the_stream_resumes_at_any_step_augmentation_included():
  augment = [transforms.crop(1), transforms.flip()]
  whole = take(12, augment=augment)
  for step in (1, 5, 11):
    rest = take(12 - step, augment=augment, start_step=step)
    assert_same(whole[step:], rest)


def test_augmentation_differs_between_epochs_and_examples():
  batches = take(50, augment=[transforms.crop(1)])
  positions = {}
  for batch in batches:
    for image, label in zip(batch['image'], batch['label'], strict=True):
      where = np.argwhere(image[..., 0] == 100)
      positions.setdefault(int(label), set()).add(str(where))
  # 20 draws of 9 windows each: all alike has probability 9^-19.
  assert all(len(seen) > 1 for seen in positions.values())


def test_two_processes_share_the_batch_of_one():
  augment = [transforms.crop(1)]
  whole = take(6, augment=augment)
  parts = [
    take(6, augment=augment, process_index=i, process_count=2) for i in (0, 1)
  ]
  for batch, left, right in zip(whole, *parts, strict=True):
    # The same examples with the same augmentation, interleaved.
    np.testing.assert_array_equal(batch['image'][0::2], left['image'])
    np.testing.assert_array_equal(batch['image'][1::2], right['image'])


def test_evaluation_sees_every_example_once():
  for processes in (1, 2):
    ids = []
    for index in range(processes):
      stream = pipeline.eval_batches(
        source(10),
        batch_size=4,
        process_index=index,
        process_count=processes,
      )
      batches = list(stream)
      assert len(batches) == 3  # Equally often on every process.
      assert all(len(b['label']) == 4 // processes for b in batches)
      for batch in batches:
        ids += batch['id'][batch['mask']].tolist()
        real = batch['mask']
        np.testing.assert_array_equal(batch['id'][real], batch['label'][real])
    assert sorted(ids) == list(range(10))
