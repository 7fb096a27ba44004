import contextlib
import itertools

import numpy as np
import pytest

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import pipeline
from lipnext_jax.data import sources
from lipnext_jax.data import transforms
from lipnext_jax.data import views

SHAPE = (4, 4, 1)


def source(length):
  """Returns examples with distinct labels."""
  images = np.zeros((length, *SHAPE), np.uint8)
  images[:, 0, 0, 0] = np.arange(length)
  images[:, 1, 1, 0] = 100
  return views.ArraySource(images, np.arange(length))


def take(count, examples=None, augment=(), extra=None, **options):
  """Returns `count` batches of 4 examples, and 8 of the source `extra`."""
  streams = [pipeline.Stream(examples or source(10), SHAPE, augment, 4)]
  if extra is not None:
    streams.append(pipeline.Stream(extra, SHAPE, [transforms.flip], 8))
  stream = pipeline.train_batches(streams, **{'seed': 0} | options)
  with contextlib.closing(stream):
    return list(itertools.islice(stream, count))


def labels(batches):
  return np.concatenate([batch['label'] for batch in batches]).tolist()


def test_every_epoch_is_a_permutation_and_no_example_is_dropped():
  seen = labels(take(5))  # 20 examples of 10: two epochs across batches.
  assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
  assert list(range(10)) != seen[:10] != seen[10:]
  assert labels(take(5)) == seen != labels(take(5, seed=1))


def test_the_stream_resumes_with_any_workers_and_processes():
  """Bitwise, with augmentation and mixed-in examples."""
  options = {'augment': [transforms.crop(1)], 'extra': source(7)}
  whole = take(12, **options)
  for start, workers, count in ((1, 0, 1), (5, 2, 1), (3, 0, 2), (5, 0, 4)):
    options |= {'start_step': start, 'workers': workers, 'process_count': count}
    for index in range(count):
      rest = take(12 - start, **options, process_index=index)
      for batch, of_all in zip(rest, whole[start:], strict=True):
        for name, rows in batch.items():
          np.testing.assert_array_equal(rows, of_all[name][index::count])


def test_augmentation_differs_between_epochs_of_every_example():
  positions = {}
  for batch in take(50, augment=[transforms.crop(1)]):
    for image, label in zip(batch['image'], batch['label'], strict=True):
      where = np.argwhere(image[..., 0] == 100)
      positions.setdefault(int(label), set()).add(str(where))
  # 20 draws of 9 windows each: all alike has probability 9^-19.
  assert all(len(seen) > 1 for seen in positions.values())


def test_the_real_stream_is_the_same_whatever_is_mixed_in():
  mixed = np.stack([batch['label'] for batch in take(6, extra=source(10))])
  assert mixed.shape == (6, 12)
  real, extra = mixed[:, :4].ravel().tolist(), mixed[:, 4:].ravel().tolist()
  assert real == labels(take(6)) != extra[:24]  # It has an order of its own.
  # 48 mixed-in examples of 10: four epochs and eight more.
  assert sorted(np.bincount(extra)) == [4, 4, *8 * [5]]


def test_evaluation_sees_every_example_once():
  for processes in (1, 2):
    ids = []
    for index in range(processes):
      options = {'process_index': index, 'process_count': processes}
      batches = list(pipeline.eval_batches(source(10), batch_size=4, **options))
      assert len(batches) == 3  # Equally often on every process.
      for batch in batches:
        assert len(batch['label']) == 4 // processes
        real = batch['mask']
        ids += batch['id'][real].tolist()
        np.testing.assert_array_equal(batch['id'][real], batch['label'][real])
    assert sorted(ids) == list(range(10))


def test_examples_that_do_not_fit_are_named():
  small = views.ArraySource(np.zeros((3, 3, 4, 1)), np.arange(3))
  with pytest.raises(errors.DataError, match=r'training example \d has shape'):
    take(1, small)
  thin = views.ArraySource(np.zeros((3, 8000, 1, 3), np.uint8), np.arange(3))
  wanted = r'^example 0 has 1×8000 pixels, .* leave it out'
  with pytest.raises(errors.DataError, match=wanted):
    next(pipeline.eval_batches(views.resized(thin, 256, 224), batch_size=1))
  config = config_lib.default_config()  # Digits are floats: refused at once.
  config.augment.randaugment.probability = 0.5
  dataset = sources.load_dataset(config.dataset)
  wanted = '^training example 0 is float32.*RandAugment need'
  with pytest.raises(errors.DataError, match=wanted):
    pipeline.build_streams(config, dataset)


IMAGES = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3).astype(np.uint8)
LABELS = np.arange(6) % 3


def build(path, images=IMAGES, labels=LABELS, **fields):
  """Builds streams of 8×8 pixels and 3 classes, with `images` mixed in."""
  np.savez(path, image=images, label=labels)
  config = config_lib.default_config()
  config.batch_size = 8
  fields = {'dataset.extra_npz': str(path), 'dataset.extra_ratio': 3} | fields
  config.update_from_flattened_dict(fields)
  real = views.ArraySource(IMAGES, LABELS)
  dataset = sources.Dataset((8, 8, 3), 3, real, real)
  return pipeline.build_streams(config, dataset)


def test_batches_have_the_real_and_the_mixed_in_examples(tmp_path):
  path = tmp_path / 'extra.npz'
  fields = {'augment.flip': True, 'augment.randaugment.probability': 0.5}
  real, extra = build(path, 255 - IMAGES, **fields)
  assert (real.batch_size, extra.batch_size) == (8, 24)
  np.testing.assert_array_equal(extra.source[5]['image'], 255 - IMAGES[5])
  assert extra.transforms is real.transforms
  assert len(real.transforms) == 2
  own = {'augment.extra.as_real': False, 'augment.extra.crop_padding': 2}
  real, extra = build(path, **fields, **own)
  assert (len(real.transforms), len(extra.transforms)) == (2, 1)
  assert len(build(path, **{'dataset.extra_ratio': 0})) == 1
  # Images of another size need the resize.
  large = np.zeros((6, 12, 12, 3), np.uint8)
  resize = {'augment.resize.min': 8, 'augment.resize.max': 9}
  assert len(build(path, large, **resize)) == 2
  with pytest.raises(errors.DataError, match='12, 12, 3'):
    build(path, large, **resize, **own)


def test_mixed_in_images_that_do_not_fit_are_refused(tmp_path):
  for images, labels, reason in (
    (IMAGES / 255, LABELS, r'extra_npz=.*float64'),
    (IMAGES[..., :1], LABELS, 'synthetic example 0 .*8, 8, 1'),
    (IMAGES, LABELS + 1, 'up to 3; the 3 classes'),
  ):
    with pytest.raises(errors.UserError, match=reason):
      build(tmp_path / 'extra.npz', images, labels)
