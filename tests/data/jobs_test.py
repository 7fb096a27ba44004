import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lipnext_jax import errors
from lipnext_jax.data import jobs
from lipnext_jax.data import official
from lipnext_jax.data import records
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts


def contents(formats, count=7, first=0):
  items = [
    layouts.Item(
      f'train_{i:05d}',
      {'label': i % 10},
      formats.pixels(i, 32, 32).transpose(2, 0, 1).tobytes(),
    )
    for i in range(first, first + count)
  ]
  names = {'label': official.class_names('cifar10')}
  return layouts.Contents(names, {'train': items})


def write(work, what, **options):
  options = {'resize': 0, 'workers': 0} | options
  return jobs.write_splits(str(work), what, official.CIFAR10, **options)


def test_a_finished_shard_is_never_redone(tmp_path, formats):
  work, what = str(tmp_path / 'work'), contents(formats)
  jobs.start_or_continue(work, what, 0)
  first = write(work, what)
  (shard,) = [n for n in os.listdir(work) if n.startswith('cifar10')]
  # Mark it: what is written anew would lose the mark.
  with open(f'{work}/{shard}', 'ab') as file:
    file.write(b'mark')
  jobs.start_or_continue(work, what, 0)
  assert write(work, what) == first
  with open(f'{work}/{shard}', 'rb') as file:
    assert file.read().endswith(b'mark')
  # Without its result, it counts as unfinished, and is.
  os.remove(f'{work}/progress/{shard}.json')
  assert write(work, what) == first
  with open(f'{work}/{shard}', 'rb') as file:
    assert not file.read().endswith(b'mark')


def test_other_items_or_another_size_start_over(tmp_path, formats, capsys):
  work = str(tmp_path / 'work')
  jobs.start_or_continue(work, contents(formats), 0)
  marker = f'{work}/marker'
  for what, resize in (
    (contents(formats, first=1), 0),
    (contents(formats, count=6), 0),
    (contents(formats, count=6), 256),
  ):
    with open(marker, 'w'):
      pass
    jobs.start_or_continue(work, what, resize)
    assert not os.path.exists(marker)
    assert 'starting over' in capsys.readouterr().err


def test_many_shards_hold_everything_in_order(tmp_path, formats):
  count = 2 * jobs.EXAMPLES_PER_SHARD + 1
  one = contents(formats, 1).splits['train'][0]
  items = [
    one._replace(key=str(i), labels={'label': i % 7}) for i in range(count)
  ]
  what = contents(formats)._replace(splits={'train': items})
  work = str(tmp_path / 'work')
  jobs.start_or_continue(work, what, 0)
  results = write(work, what)['train']
  assert [len(result.labels) for result in results] == [833, 834, 834]
  joined = [label for result in results for label in result.labels]
  assert joined == [i % 7 for i in range(count)]


def test_a_shard_that_cannot_be_written_is_named(tmp_path, formats):
  what = contents(formats)
  with pytest.raises(errors.DataError, match=r'cifar10-train.*cannot be writ'):
    write(tmp_path / 'nowhere', what)


def test_only_one_process_prepares_a_set(tmp_path):
  path = str(tmp_path / 'lock')
  code = f"""
import sys
from lipnext_jax.data import jobs
with jobs.locked({path!r}):
  print('locked', flush=True)
  sys.stdin.read()
"""
  other = subprocess.Popen(
    [sys.executable, '-c', code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=os.getcwd(),
  )
  assert other.stdout.readline() == b'locked\n'
  with (
    pytest.raises(errors.DataError, match='another process'),
    jobs.locked(path),
  ):
    pass
  other.kill()  # The lock goes with its process, however that ends.
  other.communicate()
  with jobs.locked(path):
    pass


def test_workers_write_what_one_process_writes_and_report_bad_items(
  tmp_path, formats
):
  what = contents(formats)
  (tmp_path / 'text.jpg').write_bytes(b'no image')
  entry = archives.stat_file(str(tmp_path / 'text.jpg'))
  bad = what.splits['train'][0]._replace(key='bad', content=entry)
  what.splits['train'].insert(3, bad)
  what.splits['test'] = what.splits['train'][:5]
  results = []
  for workers in (0, 2):
    work = str(tmp_path / f'work{workers}')
    jobs.start_or_continue(work, what, 0)
    results.append(write(work, what, workers=workers))
  assert results[0] == results[1]
  (problem,) = results[0]['train'][0].bad
  assert problem.key == 'bad'
  assert f'{tmp_path}/text.jpg' in problem.problem
  sources = []
  for work, shards in zip(('work0', 'work2'), results, strict=True):
    directory = str(tmp_path / work)
    records.write_metadata(
      directory, official.CIFAR10, what.class_names, shards
    )
    sources.append(records.RecordSource(directory, 'train'))
  assert len(sources[0]) == len(sources[1]) == 7
  for i in range(7):
    for source in sources:
      image = formats.pixels(i, 32, 32)
      np.testing.assert_array_equal(source[i]['image'], image)
  with open(f'{tmp_path}/work2/progress/plan.json') as file:
    assert json.load(file)['resize'] == 0
