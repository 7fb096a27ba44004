"""Tests the way from official archives to a certified model."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import filelock
import numpy as np
import pytest
import tensorflow_datasets as tfds

from lipnext_jax import errors
from lipnext_jax import train
from lipnext_jax.data import archives
from lipnext_jax.data import formats
from lipnext_jax.data import images
from lipnext_jax.data import official
from lipnext_jax.data import prepare
from lipnext_jax.data import records
from lipnext_jax.data import shards


def do(name, source, tmp_path, **changes):
  """Prepares a set, by default one that is smaller than the official one."""
  options = {'allow_partial': True} | changes
  return prepare.prepare(name, str(source), str(tmp_path / 'data'), **options)


def assert_holds(name, source, data_dir):
  """Compares a prepared set, read by us and by TFDS, with its archive."""
  facts = official.SETS[name]
  directory = f'{data_dir}/{facts.name}/{facts.version}'
  contents = formats.read_set(name, source, allow_partial=True)
  for split, items in contents.splits.items():
    ours = records.RecordSource(directory, split)
    theirs = tfds.data_source(
      facts.name, split=split, data_dir=data_dir, download=False
    )
    for item, *examples in zip(items, ours, theirs, strict=True):
      image = item.content
      if not isinstance(image, np.ndarray):
        image = images.decode(archives.read(image))
      for example in examples:
        np.testing.assert_array_equal(example['image'], image)
        assert example['label'] == item.labels['label']
      if facts.key:
        assert examples[1][facts.key].decode() == item.key


def times(directory):
  return {e.name: e.stat().st_mtime_ns for e in os.scandir(directory)}


@pytest.mark.parametrize('name', official.SETS)
def test_archives_become_sets_that_tfds_reads(name, tmp_path, make, capsys):
  source, facts = make.archive(tmp_path, name), official.SETS[name]
  final = do(name, source, tmp_path)
  assert_holds(name, source, tmp_path / 'data')
  if name != 'tiny_imagenet':  # TFDS does not have it.
    features = tfds.builder_from_directory(final).info.features
    known = tfds.builder_cls(facts.name)(data_dir=tmp_path / 'none').info
    assert features.to_json() == known.features.to_json()
    if name in official.IDX_CHECKSUMS:  # The others have names when prepared.
      assert features['label'].names == known.features['label'].names
  # The same command does nothing, and nothing lies elsewhere.
  before = times(final)
  assert do(name, source, tmp_path) == final
  assert 'is prepared already' in capsys.readouterr().err
  assert times(final) == before
  assert 'progress' not in before
  assert os.listdir(tmp_path / 'data') == [facts.name]
  # What is there is only a part, and that has to be said again.
  with pytest.raises(errors.ConfigError, match='--allow_partial=False'):
    do(name, source, tmp_path, allow_partial=False)


def test_archive_to_records_to_certified_model(
  tmp_path, make, run_command, tiny_config
):
  source = make.archive(tmp_path, 'imagenet')
  command = [sys.executable, '-m', 'lipnext_jax.data.prepare', 'imagenet']
  flags = [f'--source={source}', f'--data_dir={tmp_path}/data', '--workers=2']
  done = run_command([*command, *flags, '--allow_partial'])
  assert '9 train, 4 validation' in done.stderr
  assert 'images/s' in done.stderr  # The progress bar.
  assert 'train.tar: has 71680 bytes instead of' in done.stderr
  assert 'Warning' not in done.stderr

  c = tiny_config
  c.dataset.update(name='imagenet', data_dir=f'{tmp_path}/data')
  c.dataset.update(image_size=16, resize=18)
  c.augment.resize.update(min=16, max=20)
  c.eval.batch_size = 8
  summary = train.train_and_evaluate(c, f'{tmp_path}/run')
  assert (summary['step'], summary['examples']) == (4, 4)
  rows = (tmp_path / 'run/radii.csv').read_text().splitlines()[1:]
  labels = [int(row.split(',')[1]) for row in rows]
  assert labels == make.imagenet_files()[2]


def test_an_official_archive_needs_no_leave_but_the_lock(
  tmp_path, make, monkeypatch
):
  """The checksums and counts of a small archive are declared official."""
  source = make.cifar(tmp_path)
  data = pathlib.Path(source).read_bytes()
  known = (len(data), f'sha256:{hashlib.sha256(data).hexdigest()}')
  monkeypatch.setitem(official.ARCHIVES, 'cifar-10-python.tar.gz', known)
  few = official.SETS['cifar10']._replace(splits={'train': 20, 'test': 4})
  monkeypatch.setitem(official.SETS, 'cifar10', few)
  (tmp_path / 'data/cifar10').mkdir(parents=True)
  refused = pytest.raises(errors.DataError, match='another process')
  with filelock.FileLock(tmp_path / 'data/cifar10/lock'), refused:
    do('cifar10', source, tmp_path, allow_partial=False)
  final = do('cifar10', source, tmp_path, allow_partial=False)
  assert len(records.RecordSource(final, 'train')) == 20
  facts = pathlib.Path(final, 'prepared.json').read_text()
  assert json.loads(facts)['allow_partial'] is False


def test_resize_stores_smaller_images(tmp_path, make):
  files, _, _ = make.imagenet_files()
  large = {'ILSVRC2012_val_00000001.JPEG': make.jpeg(1, 300, 450)}
  source = make.imagenet(tmp_path / 'tars', files, large)
  final = do('imagenet', source, tmp_path, resize=240)
  test = records.RecordSource(final, 'validation')
  assert test[0]['image'].shape == (240, 360, 3)
  with pytest.raises(errors.ConfigError, match=r'--resize=0 differs from'):
    do('imagenet', source, tmp_path)


def test_bad_records_are_refused_until_they_are_mended_or_left_out(
  tmp_path, make, capsys
):
  train, validation, _ = make.imagenet_files()
  wnid, files = next(iter(train.items()))
  first, second, _ = sorted(files)
  # Equal sizes in bytes, so that the digest is the same.
  bad = {name: b'text'.ljust(len(files[name])) for name in (first, second)}
  faulty = train | {wnid: files | bad}
  source = make.imagenet(tmp_path / 'tars', faulty, validation)
  with pytest.raises(errors.DataError, match=r'2 bad records.*--skip_bad'):
    do('imagenet', source, tmp_path)
  (path,) = tmp_path.rglob('progress/bad_records.txt')
  for text in (path.read_text(), capsys.readouterr().err):
    for name in (first, second):
      assert f'train, {name}: ' in text
  make.imagenet(tmp_path / 'tars', train, validation)
  final = do('imagenet', source, tmp_path)
  mended = records.RecordSource(final, 'train')[1]['image']
  np.testing.assert_array_equal(mended, images.decode(files[second]))

  shutil.rmtree(final)
  make.imagenet(tmp_path / 'tars', faulty, validation)
  do('imagenet', source, tmp_path, skip_bad=True)
  assert '7 train, 4 validation; 2 skipped' in capsys.readouterr().err
  facts = pathlib.Path(final, 'prepared.json').read_text()
  skipped, _ = json.loads(facts)['skipped']
  assert f'{first}: is not a JPEG' in skipped


PLACES = ['--source=/x', '--data_dir=/x']
MISTAKES = [
  (['cifar', *PLACES], "NAME.*'cifar'.*choose from.*cifar10"),
  (['mnist', '--source=x', '--data_dir='], 'data_dir.*empty'),
  (['imagenet', *PLACES, '--resize=-3'], '--resize=-3 is negative'),
  (['cifar10', *PLACES, '--resize=256'], '--resize=256.*no effect on cifar10'),
]


def test_an_error_is_one_line_and_an_exit_code(tmp_path, make, capsys):
  for arguments, message in MISTAKES:
    assert prepare.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f'error: .*{message}', line)
  source = make.cifar(tmp_path)
  os.truncate(source, 5000)
  flags = [f'--source={source}', f'--data_dir={tmp_path}', '--allow_partial']
  assert prepare.main(['cifar10', *flags]) == 3
  unverified, error = capsys.readouterr().err.splitlines()
  assert unverified.startswith(f'{source}: has 5000 bytes instead of')
  assert error.startswith(f'error: {source}: cannot be read')


SLOWLY = """
import time
from lipnext_jax.data import prepare, shards

def write_shard(*args, write=shards.write_shard):
  time.sleep(0.1)
  return write(*args)

shards.write_shard, shards.EXAMPLES_PER_SHARD = write_shard, 2
prepare.main()
"""


def test_a_killed_run_is_continued(tmp_path, make, monkeypatch, capsys):
  monkeypatch.setattr(shards, 'EXAMPLES_PER_SHARD', 2)
  source = make.cifar(tmp_path)  # 20 examples to train on, 4 to test.
  flags = [f'--source={source}', f'--data_dir={tmp_path}/data', '--workers=2']
  process = subprocess.Popen(
    [sys.executable, '-c', SLOWLY, 'cifar10', *flags, '--allow_partial'],
    stderr=subprocess.DEVNULL,
  )
  parent = tmp_path / 'data/cifar10'
  while len([*parent.glob('*/progress/cifar10*.json')]) < 2:
    assert process.poll() is None  # It ends by itself if none appear.
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  finished = parent.glob('*/progress/cifar10*.json')
  names = [path.name.removesuffix('.json') for path in finished]
  (work,) = parent.glob('incomplete.*')
  before = times(work)
  assert 2 <= len(names) < 12
  assert not (parent / '3.0.2').exists()

  final = do('cifar10', source, tmp_path)
  # The rate and the time left are those of the images that are written now.
  bar = capsys.readouterr().err
  assert f'{2 * len(names)}/24 [00:00<?, ? images/s]' in bar
  assert '24/24 [' in bar
  after = times(final)
  assert {n: after[n] for n in names} == {n: before[n] for n in names}
  assert not [name for name in after if name.endswith('.part')]
  assert_holds('cifar10', source, tmp_path / 'data')
