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
  assert seen[:10] != seen[10:]
  assert seen[:10] != list(range(10))
  assert labels(take(5)) == seen != labels(take(5, seed=1))


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_the_stream_resumes_at_any_step_with_any_workers():
  """Bitwise, with augmentation and mixed-in examples."""
  augment = [transforms.crop(1), transforms.flip]
  whole = take(12, augment=augment, extra=source(7))
  for step, workers in ((1, 0), (5, 2), (11, 0)):
    options = {'start_step': step, 'workers': workers}
    rest = take(12 - step, augment=augment, extra=source(7), **options)
    assert_same(whole[step:], rest)


def test_augmentation_differs_between_epochs_of_every_example():
  positions = {}
  for batch in take(50, augment=[transforms.crop(1)]):
    for image, label in zip(batch['image'], batch['label'], strict=True):
      where = np.argwhere(image[..., 0] == 100)
      positions.setdefault(int(label), set()).add(str(where))
  # 20 draws of 9 windows each: all alike has probability 9^-19.
  assert all(len(seen) > 1 for seen in positions.values())


def test_processes_share_the_batch_of_one_from_any_step():
  """A run of one process may resume with two or four."""
  options = {'augment': [transforms.crop(1)], 'extra': source(7)}
  whole = take(6, **options)
  for processes, start in ((2, 0), (2, 3), (4, 5)):
    options |= {'start_step': start, 'process_count': processes}
    for i in range(processes):
      parts = [
        {name: batch[name][i::processes] for name in batch}
        for batch in whole[start:]
      ]
      assert_same(take(6 - start, **options, process_index=i), parts)


def test_the_real_stream_is_the_same_whatever_is_mixed_in():
  mixed = np.stack([batch['label'] for batch in take(6, extra=source(7))])
  assert mixed.shape == (6, 12)
  assert mixed[:, :4].ravel().tolist() == labels(take(6))
  # 48 mixed-in examples of 7: six epochs and six more.
  seen = np.bincount(mixed[:, 4:].ravel()).tolist()
  assert (seen.count(7), sum(seen)) == (6, 48)
  # And in an order of its own: not that of the real examples.
  mixed = np.stack([batch['label'] for batch in take(5, extra=source(10))])
  assert mixed[:, :4].ravel().tolist() != mixed[:, 4:].ravel().tolist()[:20]


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
  with pytest.raises(errors.DataError, match=r'training example \d has shape'):
    take(1, views.ArraySource(np.zeros((3, 3, 4, 1)), np.arange(3)))
  floats = views.ArraySource(np.zeros((3, 4, 4, 1), np.float32), np.arange(3))
  with pytest.raises(
    errors.DataError, match=r'\d is float32.*RandAugment need'
  ):
    take(1, floats, [transforms.on_pillow([])])
  thin = views.ArraySource(np.zeros((3, 8000, 1, 3), np.uint8), np.arange(3))
  resize = transforms.on_pillow([transforms.random_resize(256, 256)])
  wanted = r'^training example \d has 1×8000 pixels, .* leave it out'
  with pytest.raises(errors.DataError, match=wanted):
    take(1, thin, [resize])
  resized = views.resized(thin, 256, 224)
  with pytest.raises(errors.DataError, match=r'^example 0 has 1×8000 pixels'):
    next(pipeline.eval_batches(resized, batch_size=1))
  config = config_lib.default_config()  # Digits are floats: refused at once.
  config.augment.randaugment.probability = 0.5
  dataset = sources.load_dataset(config.dataset)
  with pytest.raises(errors.DataError, match=r'0 is float32.*RandAugment need'):
    pipeline.build_streams(config, dataset)


IMAGES = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3).astype(np.uint8)
LABELS = np.arange(6) % 3


def build(path, images=IMAGES, labels=LABELS, **fields):
  """Builds streams of 8×8 pixels and 3 classes, with `images` mixed in."""
  if images is not None:
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
  batches = pipeline.train_batches([real, extra], seed=0)
  assert next(batches)['image'].shape == (32, 8, 8, 3)
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
    (None, LABELS, 'does not exist'),
    (IMAGES / 255, LABELS, r'extra_npz=.*float64'),
    (IMAGES[..., :1], LABELS, 'example 0 .*8, 8, 1'),
    (IMAGES[:, 1:], LABELS, 'synthetic example 0 .*7, 8, 3'),
    (IMAGES, LABELS + 1, 'up to 3; the 3 classes'),
  ):
    with pytest.raises(errors.UserError, match=reason):
      build(tmp_path / 'extra.npz', images, labels)
