import os

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


def write(work, train, form=FORM, workers=0, redo_bad=True):
  splits = {'train': train, 'test': train[:2]}
  return jobs.write_splits(
    str(work), splits, form, workers=workers, redo_bad=redo_bad
  )


def test_finished_shards_are_skipped_and_others_written(tmp_path, formats):
  first = write(tmp_path, formats.items(7))
  shard = 'cifar10-train.array_record-00000-of-00001'
  # Mark it: what is written anew would lose the mark.
  with open(tmp_path / shard, 'ab') as file:
    file.write(b'mark')
  assert write(tmp_path, formats.items(7)) == first
  assert (tmp_path / shard).read_bytes().endswith(b'mark')
  # Without its result, it counts as unfinished, and is.
  os.remove(tmp_path / 'progress' / f'{shard}.json')
  assert write(tmp_path, formats.items(7)) == first
  assert not (tmp_path / shard).read_bytes().endswith(b'mark')


def test_other_items_or_another_size_start_over(tmp_path, formats, capsys):
  work = tmp_path / 'work'
  write(work, formats.items(7))
  for train, form in (
    (formats.items(7, first=1), FORM),
    (formats.items(6), FORM),
    (formats.items(6), FORM._replace(resize=256)),
  ):
    (work / 'marker').touch()
    write(work, train, form)
    assert not (work / 'marker').exists()
    assert 'starting over' in capsys.readouterr().err


def test_shards_of_equal_size_hold_everything_in_order(
  tmp_path, formats, monkeypatch
):
  monkeypatch.setattr(jobs, 'EXAMPLES_PER_SHARD', 3)
  results = write(tmp_path, formats.items(8))['train']
  assert [result.labels for result in results] == [
    [0, 1], [2, 3, 4], [5, 6, 7]
  ]  # fmt: skip


def test_a_shard_that_cannot_be_written_is_named(
  tmp_path, formats, monkeypatch
):
  missing = [f'{tmp_path}/no/cifar10-train']
  monkeypatch.setattr(records, 'shard_paths', lambda *args: missing)
  with pytest.raises(errors.DataError, match=r'cifar10-train.*cannot be writ'):
    write(tmp_path / 'work', formats.items(7))


def test_workers_write_what_one_process_writes_and_report_bad_items(
  tmp_path, formats
):
  train = formats.items(7)
  (tmp_path / 'text.jpg').write_bytes(b'no image')
  entry = archives.stat_file(str(tmp_path / 'text.jpg'))
  train.insert(3, train[0]._replace(key='bad', content=entry))
  results = [
    write(tmp_path / f'work{workers}', train, workers=workers)
    for workers in (0, 2)
  ]
  assert results[0] == results[1]
  (result,) = results[0]['train']
  assert list(result.bad) == ['bad']
  assert f'{tmp_path}/text.jpg: is not a JPEG' in result.bad['bad']
  for workers in (0, 2):
    directory = str(tmp_path / f'work{workers}')
    records.write_metadata(directory, FORM, results[0])
    source = records.RecordSource(directory, 'train')
    assert len(source) == 7
    for i in range(7):
      np.testing.assert_array_equal(
        source[i]['image'], formats.pixels(i, 32, 32)
      )
