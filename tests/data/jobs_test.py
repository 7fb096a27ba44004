import errno

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import jobs
from lipnext_jax.data import official
from lipnext_jax.data import records
from lipnext_jax.data.formats import archives

FORM = records.Form(
  official.CIFAR10, {'label': official.class_names('cifar10')}
)


def write(work, train, workers=0):
  splits = {'train': train, 'test': train[:2]}
  return jobs.write_splits(str(work), splits, FORM, workers=workers)


def test_other_examples_or_another_size_have_another_folder(formats):
  digests = {
    jobs.digest({split: items}, form)
    for split, items, form in (
      ('train', formats.items(7), FORM),
      ('test', formats.items(7), FORM),
      ('train', formats.items(6), FORM),
      ('train', formats.items(7, first=1), FORM),
      ('train', formats.items(7), FORM._replace(resize=256)),
    )
  }
  assert len(digests) == 5


def test_a_shard_that_cannot_be_written_is_named(
  tmp_path, formats, monkeypatch
):
  def write_shard(path, *args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(records, 'write_shard', write_shard)
  message = r'cifar10-train.* cannot be written .*No space left'
  with pytest.raises(errors.DataError, match=message):
    write(tmp_path / 'work', formats.items(7))


def test_workers_write_what_one_process_writes_and_report_bad_items(
  tmp_path, formats
):
  train = formats.items(7)
  (tmp_path / 'text.jpg').write_bytes(b'no image')
  entry = archives.stat_file(str(tmp_path / 'text.jpg'))
  train.insert(3, train[0]._replace(key='bad', content=entry))
  results = []
  for workers in (0, 2):
    work = tmp_path / f'work{workers}'
    results.append(write(work, train, workers=workers))
    records.write_metadata(str(work), FORM, results[-1])
    source = records.RecordSource(str(work), 'train')
    images = [example['image'] for example in source]
    np.testing.assert_array_equal(
      images, [formats.pixels(i, 32, 32) for i in range(7)]
    )
  assert results[0] == results[1]
  (result,) = results[0]['train']
  assert list(result.bad) == ['bad']
  assert 'is not a JPEG' in result.bad['bad']
