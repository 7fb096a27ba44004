"""Tests the way from official archives to a certified model."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import filelock
import numpy as np
import pytest
import tensorflow_datasets as tfds

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import image_sets
from lipnext_jax.data import images
from lipnext_jax.data import jobs
from lipnext_jax.data import official
from lipnext_jax.data import prepare

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def do(name, source, tmp_path, **changes):
  """Prepares a set, by default one that is smaller than the official one."""
  fields = {'allow_partial': True} | changes
  data_dir = str(tmp_path / 'data')
  return prepare.prepare(prepare.Options(name, str(source), data_dir, **fields))


def open_set(name, data_dir):
  c = config_lib.default_config().dataset
  c.update(name=name, data_dir=data_dir)
  return image_sets.open_set(c)


def archive(name, formats, directory):
  """Writes a small official archive of any set."""
  if name == 'imagenet':
    return formats.imagenet(directory / 'tars', *formats.imagenet_files()[:2])
  if name == 'tiny_imagenet':
    return formats.tiny(directory)
  if name in official.IDX_CHECKSUMS:
    return formats.idx(directory / 'idx')
  return formats.cifar(directory, name)


def assert_is_the_train_split(train, name, formats):
  """Compares with the training images and labels of `archive`."""
  if name == 'tiny_imagenet':
    files = formats.tiny_files()
    truth = [
      (images.decode(files[f'train/{wnid}/images/{wnid}_{i}.JPEG']), label)
      for label, wnid in enumerate(formats.TINY_WNIDS[:3])
      for i in range(3)
    ]
  elif name == 'imagenet':
    classes, _, _ = formats.imagenet_files()
    wnids = official.imagenet_wnids()
    truth = [
      (images.decode(classes[wnid][file]), wnids.index(wnid))
      for wnid in sorted(classes)
      for file in sorted(classes[wnid])
    ]
  elif name in official.IDX_CHECKSUMS:
    truth = zip(*formats.idx_files()[1]['train'], strict=True)
  else:
    found = formats.cifar_files(name)[2]['train']
    truth = [(image, labels['label']) for image, labels in found]
  for example, (image, label) in zip(train, truth, strict=True):
    np.testing.assert_array_equal(example['image'], image)
    assert example['label'] == label


def times(directory):
  return {e.name: e.stat().st_mtime_ns for e in os.scandir(directory)}


@pytest.fixture
def run(run_command):
  return lambda *arguments: run_command([sys.executable, '-m', *arguments])


def assert_tfds_reads_the_same(name, tmp_path):
  ours = open_set(name, f'{tmp_path}/data')
  facts = official.SETS[name]
  for split, mine in (('train', ours.train), (facts.test_split, ours.test)):
    theirs = tfds.data_source(
      facts.name, split=split, data_dir=f'{tmp_path}/data', download=False
    )
    assert len(theirs) == len(mine) > 0
    for example, other in zip(mine, theirs, strict=True):
      np.testing.assert_array_equal(example['image'], other['image'])
      assert example['label'] == other['label']
  return ours


@pytest.mark.parametrize('name', official.SETS)
def test_archives_become_sets_that_tfds_reads(name, tmp_path, formats, capsys):
  source = archive(name, formats, tmp_path)
  final = do(name, source, tmp_path)
  ours = assert_tfds_reads_the_same(name, tmp_path)
  assert_is_the_train_split(ours.train, name, formats)
  # The same command does nothing, and nothing lies elsewhere.
  before = times(final)
  assert do(name, source, tmp_path) == final
  assert 'is prepared already' in capsys.readouterr().err
  assert times(final) == before
  assert 'progress' not in before
  assert os.listdir(tmp_path / 'data') == [official.SETS[name].name]
  # What is there is only a part, and that has to be said again.
  with pytest.raises(errors.ConfigError, match='--allow_partial=False'):
    do(name, source, tmp_path, allow_partial=False)


@pytest.mark.slow  # Two programs, one of which trains.
def test_archive_to_records_to_certified_model(tmp_path, formats, run):
  source = archive('imagenet', formats, tmp_path)
  done = run(
    'lipnext_jax.data.prepare',
    'imagenet',
    f'--source={source}',
    f'--data_dir={tmp_path}/data',
    '--workers=2',
    '--allow_partial',
  )
  assert done.returncode == 0, done.stderr
  assert '9 train, 4 validation' in done.stderr
  assert 'images/s' in done.stderr  # The progress bar.
  assert 'train.tar: has 71680 bytes instead of' in done.stderr
  assert 'Warning' not in done.stderr
  ours = assert_tfds_reads_the_same('imagenet', tmp_path)

  small = {
    'dataset.name': 'imagenet',
    'dataset.data_dir': f'{tmp_path}/data',
    'dataset.image_size': 16,
    'dataset.resize': 18,
    'augment.resize.min': 16,
    'augment.resize.max': 20,
    'model.depth': 2,
    'model.width': 16,
    'model.patch_size': 4,
    'batch_size': 16,
    'eval.batch_size': 8,
    'duration': '2 steps',
    'optimizer.warmup': '1 steps',
  }
  done = run(
    'lipnext_jax.main',
    '--config=configs/digits.py',
    f'--workdir={tmp_path}/run',
    *(f'--config.{field}={value}' for field, value in small.items()),
  )
  assert done.returncode == 0, done.stderr
  with open(f'{tmp_path}/run/eval.json') as file:
    summary = json.load(file)
  assert (summary['step'], summary['examples']) == (2, len(ours.test))
  with open(f'{tmp_path}/run/radii.csv') as file:
    rows = [row.split(',') for row in file.read().splitlines()[1:]]
  labels = [int(ours.test[i]['label']) for i in range(len(ours.test))]
  assert [int(row[1]) for row in rows] == labels


def test_an_official_archive_needs_no_leave(tmp_path, formats, monkeypatch):
  """The checksums and counts of a small archive are declared official."""
  source = archive('cifar10', formats, tmp_path)
  with open(source, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  facts = official.Archive(os.path.getsize(source), digest)
  monkeypatch.setitem(official.ARCHIVES, 'cifar-10-python.tar.gz', facts)
  few = official.CIFAR10._replace(splits={'train': 20, 'test': 4}, balanced=())
  monkeypatch.setitem(official.SETS, 'cifar10', few)
  final = do('cifar10', source, tmp_path, allow_partial=False)
  assert len(open_set('cifar10', f'{tmp_path}/data').train) == 20
  with open(f'{final}/prepared.json') as file:
    assert json.load(file)['allow_partial'] is False
  # Equally many of every class, where the official set has them.
  monkeypatch.setitem(
    official.SETS, 'cifar10', few._replace(balanced=('train',))
  )
  with pytest.raises(errors.DataError, match='1 to 3 of each class'):
    prepare.read_set(prepare.Options('cifar10', source, '/x'))


def test_resize_stores_smaller_images(tmp_path, formats):
  train, _, _ = formats.imagenet_files()
  large = {'ILSVRC2012_val_00000001.JPEG': formats.jpeg(1, 300, 450)}
  source = formats.imagenet(tmp_path / 'tars', train, large)
  do('imagenet', source, tmp_path, resize=240)
  test = open_set('imagenet', f'{tmp_path}/data').test
  assert test[0]['image'].shape == (240, 360, 3)
  with pytest.raises(errors.ConfigError, match=r'--resize=0 differs from'):
    do('imagenet', source, tmp_path)


def test_counts_are_the_official_ones_unless_told_otherwise(tmp_path, formats):
  files, _, _ = formats.cifar_files('cifar10')
  tree = formats.tree(tmp_path / 'cifar-10-batches-py', files)
  with pytest.raises(errors.DataError, match=r'train: has 20 ex.*partial'):
    do('cifar10', tree, tmp_path, allow_partial=False)
  assert not os.path.exists(tmp_path / 'data')


def test_only_one_process_prepares_a_set(tmp_path, formats):
  (tmp_path / 'data' / 'cifar10').mkdir(parents=True)
  with (
    filelock.FileLock(tmp_path / 'data' / 'cifar10' / 'lock'),
    pytest.raises(errors.DataError, match='another process'),
  ):
    do('cifar10', formats.cifar(tmp_path), tmp_path)


def test_bad_records_are_collected_and_left_out_when_told(
  tmp_path, formats, capsys
):
  train, validation, _ = formats.imagenet_files()
  files = next(iter(train.values()))
  names = sorted(files)
  files[names[0]] = b'<html>not found</html>'
  files[names[1]] = files[names[1]][:-100]
  source = formats.imagenet(tmp_path / 'tars', train, validation)
  with pytest.raises(errors.DataError, match=r'2 bad records.*--skip_bad'):
    do('imagenet', source, tmp_path)
  printed = capsys.readouterr().err
  for name in names[:2]:
    assert f'train, {name}: ' in printed
  parent = tmp_path / 'data' / 'imagenet2012'
  (unfinished,) = parent.glob('incomplete.5.1.0.*')
  unfinished.rename(parent / 'incomplete.of_other_data')

  final = do('imagenet', source, tmp_path, skip_bad=True)
  assert '7 train, 4 validation; 2 skipped' in capsys.readouterr().err
  assert sorted(os.listdir(parent)) == ['5.1.0', 'lock']
  assert len(open_set('imagenet', f'{tmp_path}/data').train) == 7
  with open(f'{final}/prepared.json') as file:
    skipped = json.load(file)['skipped']
  assert len(skipped) == 2
  assert f'{names[0]}: is not a JPEG' in skipped[0]

  shutil.rmtree(final)
  bad = dict.fromkeys(validation, b'text')
  formats.imagenet(tmp_path / 'tars', train, bad)
  with pytest.raises(errors.DataError, match='validation: all images are bad'):
    do('imagenet', source, tmp_path, skip_bad=True)


def test_a_mended_source_is_looked_at_again(tmp_path, formats):
  files = formats.tiny_files()
  name = f'train/{formats.TINY_WNIDS[1]}/images/{formats.TINY_WNIDS[1]}_2.JPEG'
  good = files[name]
  files[name] = bytes(len(good))
  tree = formats.tree(tmp_path / 'tiny-imagenet-200', files)
  with pytest.raises(errors.DataError, match='1 bad records'):
    do('tiny_imagenet', tree, tmp_path)
  with open(f'{tree}/{name}', 'wb') as file:
    file.write(good)
  do('tiny_imagenet', tree, tmp_path)
  train = open_set('tiny_imagenet', f'{tmp_path}/data').train
  np.testing.assert_array_equal(train[5]['image'], images.decode(good))


def test_images_and_labels_that_do_not_fit_the_set_are_refused(
  tmp_path, formats
):
  files = formats.tiny_files()
  for i, size in ((1, (65, 64)), (2, (64, 63))):
    wnid = formats.TINY_WNIDS[i]
    files[f'train/{wnid}/images/{wnid}_2.JPEG'] = formats.jpeg(0, *size)
  source = formats.tiny(tmp_path, files)
  with pytest.raises(errors.DataError, match='2 bad records'):
    do('tiny_imagenet', source, tmp_path)
  for label in (10, -1):
    batches = formats.cifar_files('cifar10')[0]
    pixels = np.zeros((4, 3072), np.uint8)
    batches['test_batch'] = formats.python2_pickle(
      {b'data': pixels, b'labels': [1, 2, label, 3]}
    )
    source = formats.cifar(tmp_path, 'cifar10', batches)
    message = f'split test, test_00002: has label {label} of 10 classes'
    with pytest.raises(errors.DataError, match=message):
      do('cifar10', source, tmp_path)


MISTAKES = {
  'an unknown flag': (['cifar10', '--sorce=x'], ['sorce', 'see -h']),
  'no name': ([], ['NAME', 'choose one of cifar10']),
  'two names': (['cifar10', 'mnist'], ['unrecognized arguments: mnist']),
  'no source': (['cifar10', '--data_dir=/x'], ['--source', 'is missing']),
  'a negative number': (
    ['imagenet', '--source=/x', '--data_dir=/x', '--resize=-3'],
    ['--resize=-3 is negative'],
  ),
  'a resize of what has one size': (
    ['cifar10', '--source=/x', '--data_dir=/x', '--resize=256'],
    ['--resize=256', 'has no effect on cifar10'],
  ),
}


def in_process(arguments, capsys):
  """Runs the command line in this process; returns exit code and stderr."""
  return prepare.main(arguments), capsys.readouterr().err


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(mistake, capsys):
  arguments, parts = MISTAKES[mistake]
  code, printed = in_process(arguments, capsys)
  assert code == 2
  assert len(printed.splitlines()) == 1
  assert printed.startswith('error: ')
  for part in parts:
    assert part in printed


def test_wrong_data_are_exit_3_and_places_that_refuse_exit_7(
  tmp_path, formats, capsys
):
  source = formats.cifar(tmp_path)
  os.truncate(source, 5000)
  arguments = ['cifar10', f'--source={source}', '--allow_partial']
  code, printed = in_process([*arguments, f'--data_dir={tmp_path}/d'], capsys)
  assert code == 3
  unverified, error = printed.splitlines()
  assert unverified.startswith(f'{source}: has 5000 bytes instead of')
  assert error.startswith(f'error: {source}: cannot be read')
  # A file stands where the folder should go.
  source = formats.cifar(tmp_path)
  (tmp_path / 'file').write_bytes(b'')
  code, printed = in_process(
    [*arguments, f'--data_dir={tmp_path}/file'], capsys
  )
  assert code == 7
  assert 'Traceback' not in printed


SLOWLY = """
import sys, time
from lipnext_jax.data import jobs, prepare, records

def write_shard(*args, write=records.write_shard):
  time.sleep(0.1)
  return write(*args)

records.write_shard, jobs.EXAMPLES_PER_SHARD = write_shard, 2
prepare.main()
"""


def test_a_killed_run_is_continued(tmp_path, formats, monkeypatch):
  """After SIGKILL, the same command writes only the missing shards."""
  monkeypatch.setattr(jobs, 'EXAMPLES_PER_SHARD', 2)
  source = formats.cifar(tmp_path)  # 20 examples to train on, 4 to test.
  flags = [f'--source={source}', f'--data_dir={tmp_path}/data', '--workers=0']
  process = subprocess.Popen(
    [sys.executable, '-c', SLOWLY, 'cifar10', *flags, '--allow_partial'],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  parent, finished = tmp_path / 'data' / 'cifar10', []
  deadline = time.monotonic() + 300
  while len(finished) < 2 and time.monotonic() < deadline:
    assert process.poll() is None
    finished = list(parent.glob('*/progress/cifar10*.json'))
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
  after = times(final)
  assert {n: after[n] for n in names} == {n: before[n] for n in names}
  assert not [name for name in after if name.endswith('.part')]
  assert len([name for name in after if name.endswith('-of-00010')]) == 10
  train = open_set('cifar10', f'{tmp_path}/data').train
  assert_is_the_train_split(train, 'cifar10', formats)
