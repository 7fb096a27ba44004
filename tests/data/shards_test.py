import errno

import pytest

from lipnext_jax import errors
from lipnext_jax.data import shards


def test_other_examples_or_another_size_have_another_digest(make):
  (item,) = make.items(1)
  digests = {
    shards.digest({'train': [item]}),
    shards.digest({'test': [item]}),
    shards.digest({'train': [item, item]}),
    shards.digest({'train': [item._replace(key='other')]}),
    shards.digest({'train': [item._replace(labels={'label': 9})]}),
    shards.digest({'train': [item._replace(content=b'')]}),
    shards.digest({'train': [item]}, resize=256),
  }
  assert len(digests) == 7


def test_a_shard_that_cannot_be_written_is_named(tmp_path, make, monkeypatch):
  def write_shard(path, *args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(shards, 'write_shard', write_shard)
  message = r'cifar10-train.* cannot be written .*No space left'
  with pytest.raises(errors.DataError, match=message):
    shards.write_splits(str(tmp_path), {'train': make.items(7)}, make.FORM)
