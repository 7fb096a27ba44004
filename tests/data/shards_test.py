import errno

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lipnext_jax import errors
from lipnext_jax.data import archives
from lipnext_jax.data import official
from lipnext_jax.data import records
from lipnext_jax.data import shards

FORM = shards.Form(
  official.SETS['cifar10'], {'label': official.class_names('cifar10')}
)


def test_other_examples_or_another_size_have_another_digest(make):
  digests = {
    shards.digest({split: items}, resize)
    for split, items, resize in (
      ('train', make.items(7), 0),
      ('test', make.items(7), 0),
      ('train', make.items(6), 0),
      ('train', make.items(7, first=1), 0),
      ('train', make.items(7), 256),
    )
  }
  assert len(digests) == 5


def test_a_shard_that_cannot_be_written_is_named(tmp_path, make, monkeypatch):
  def write_shard(path, *args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(shards, 'write_shard', write_shard)
  message = r'cifar10-train.* cannot be written .*No space left'
  with pytest.raises(errors.DataError, match=message):
    shards.write_splits(str(tmp_path), {'train': make.items(7)}, FORM)


@pytest.mark.parametrize('workers', [0, 2])
def test_good_items_are_written_in_order_and_bad_ones_reported(
  tmp_path, make, monkeypatch, workers
):
  monkeypatch.setattr(shards, 'EXAMPLES_PER_SHARD', 2)
  train = make.items(7)
  (tmp_path / 'text.jpg').write_bytes(b'no image')
  entry = archives.stat_file(str(tmp_path / 'text.jpg'))
  train.insert(3, train[0]._replace(key='bad', content=entry))
  splits = {'train': train, 'test': train[:2]}
  work = str(tmp_path / 'work')
  written = shards.write_splits(work, splits, FORM, workers)
  shards.write_metadata(work, FORM, written)
  found = list(records.RecordSource(work, 'train'))
  images = [example['image'] for example in found]
  np.testing.assert_array_equal(
    images, [make.pixels(i, 32, 32) for i in range(7)]
  )
  assert [example['label'] for example in found] == list(range(7))
  assert [len(shard.labels) for shard in written['train']] == [2, 1, 2, 2]
  assert 'is not a JPEG' in written['train'][1].bad['bad']


@pytest.mark.parametrize('name', sorted({*official.SETS} - {'tiny_imagenet'}))
def test_features_are_those_of_tfds(name, tmp_path):
  facts = official.SETS[name]
  theirs = tfds.builder_cls(facts.name)(data_dir=tmp_path).info.features
  if name == 'imagenet':
    names = {'label': official.imagenet_words('labels.txt')}
  else:
    names = {'label': official.class_names(name)}
  if name == 'cifar100':
    names['coarse_label'] = official.class_names('cifar100_coarse')
  assert shards.Form(facts, names).features().to_json() == theirs.to_json()
  if name in official.IDX_CHECKSUMS:  # The others have names when prepared.
    assert theirs['label'].names == names['label']
