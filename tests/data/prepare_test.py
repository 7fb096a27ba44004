"""From official archives to trained and certified, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import image_sets
from lipnext_jax.data import images
from lipnext_jax.data import jobs
from lipnext_jax.data import prepare

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def options(name, source, tmp_path, **changes):
  fields = {'allow_partial': True} | changes
  return prepare.Options(name, str(source), str(tmp_path / 'data'), **fields)


def archive(name, formats, directory):
  """A small official archive of any set."""
  if name == 'imagenet':
    return formats.imagenet(directory / 'tars', *formats.imagenet_files())
  maker = {
    'cifar10': formats.cifar10,
    'cifar100': formats.cifar100,
    'tiny_imagenet': formats.tiny,
  }[name]
  return maker(directory)


NAMES = {
  'cifar10': ('cifar10', 'test'),
  'cifar100': ('cifar100', 'test'),
  'tiny_imagenet': ('tiny_imagenet', 'validation'),
  'imagenet': ('imagenet2012', 'validation'),
}
CONFIGS = {name: f'{name}.py' for name in NAMES} | {
  'imagenet': 'imagenet_1b.py'
}


@pytest.fixture
def run(run_command):
  return lambda *arguments: run_command([sys.executable, '-m', *arguments])


@pytest.mark.parametrize('name', NAMES)
def test_archive_to_records_to_certified_model(name, tmp_path, formats, run):
  source = archive(name, formats, tmp_path)
  # Once as a user does it, the other times without a process of its own.
  if name == 'cifar10':
    done = run(
      'lipnext_jax.data.prepare',
      name,
      f'--source={source}',
      f'--data_dir={tmp_path}/data',
      '--workers=2',
      '--allow_partial',
    )
    assert done.returncode == 0, done.stderr
    assert '20 train, 4 test' in done.stderr
    assert 'images/s' in done.stderr  # The progress bar.
    assert 'Warning' not in done.stderr
  else:
    prepare.prepare(options(name, source, tmp_path))

  ours = image_sets.open_set(name, f'{tmp_path}/data')
  tfds_name, test_split = NAMES[name]
  for split, mine in (('train', ours.train), (test_split, ours.test)):
    theirs = tfds.data_source(
      tfds_name, split=split, data_dir=f'{tmp_path}/data', download=False
    )
    assert len(theirs) == len(mine) > 0
    for example, other in zip(mine, theirs, strict=True):
      np.testing.assert_array_equal(example['image'], other['image'])
      assert example['label'] == other['label']

  # The smoke variant, on the set: the session has compiled it, or will again.
  defaults = config_lib.default_config().dataset.synthetic
  period = '--config.optimizer.retraction_period'
  done = run(
    'lipnext_jax.main',
    f'--config=configs/{CONFIGS[name]}:smoke',
    f'--workdir={tmp_path}/run',
    f'--config.dataset.name={name}',
    f'--config.dataset.data_dir={tmp_path}/data',
    # As the smoke variant's, whose epochs are of 4 steps.
    *(() if name == 'imagenet' else (f'{period}=4 steps',)),
    *(f'--config.dataset.synthetic.{k}={v}' for k, v in defaults.items()),
  )
  assert done.returncode == 0, done.stderr
  with open(f'{tmp_path}/run/eval.json') as file:
    summary = json.load(file)
  assert (summary['step'], summary['examples']) == (2, len(ours.test))
  with open(f'{tmp_path}/run/radii.csv') as file:
    rows = [row.split(',') for row in file.read().splitlines()[1:]]
  labels = [int(ours.test[i]['label']) for i in range(len(ours.test))]
  assert [int(row[1]) for row in rows] == labels


def test_imagenet_keeps_files_and_turns_odd_ones_into_the_same_pixels(
  tmp_path, formats
):
  train, _, _ = formats.imagenet_files()
  source = archive('imagenet', formats, tmp_path)
  prepare.prepare(options('imagenet', source, tmp_path))
  stored = tfds.data_source(
    'imagenet2012',
    split='train',
    data_dir=f'{tmp_path}/data',
    download=False,
    decoders={'image': tfds.decode.SkipDecoding()},
  )
  files = {n: data for group in train.values() for n, data in group.items()}
  kept = 0
  for example in stored:
    original = files[example['file_name'].decode()]
    kept += example['image'] == original
    np.testing.assert_array_equal(
      images.decode(example['image']), images.decode(original)
    )
  # All but the grey and the CMYK one; the PNG is RGB already.
  assert kept == len(files) - 2


def test_resize_stores_smaller_images(tmp_path, formats):
  train, _, labels = formats.imagenet_files()
  large = {'ILSVRC2012_val_00000001.JPEG': formats.jpeg(1, 300, 450)}
  source = formats.imagenet(tmp_path / 'tars', train, large, labels)
  prepare.prepare(options('imagenet', source, tmp_path, resize=240))
  test = image_sets.open_set('imagenet', f'{tmp_path}/data').test
  assert test[0]['image'].shape == (240, 360, 3)
  with pytest.raises(errors.ConfigError, match=r'--resize=0 differs from'):
    prepare.prepare(options('imagenet', source, tmp_path))


def times(directory):
  return {e.name: e.stat().st_mtime_ns for e in os.scandir(directory)}


def test_the_same_command_twice_does_nothing(tmp_path, formats, capsys):
  source = formats.cifar10(tmp_path)
  final = prepare.prepare(options('cifar10', source, tmp_path))
  before = {
    name: os.stat(f'{final}/{name}').st_mtime_ns for name in os.listdir(final)
  }
  assert prepare.prepare(options('cifar10', source, tmp_path)) == final
  assert 'is prepared already' in capsys.readouterr().err
  after = {
    name: os.stat(f'{final}/{name}').st_mtime_ns for name in os.listdir(final)
  }
  assert before == after
  assert 'progress' not in before
  # What is there is only a part, and that has to be said again.
  with pytest.raises(errors.ConfigError, match='--allow_partial=False'):
    prepare.prepare(options('cifar10', source, tmp_path, allow_partial=False))


def test_nothing_is_written_outside_the_set(tmp_path, formats):
  source = formats.cifar10(tmp_path)
  before = set(os.listdir(tmp_path))
  prepare.prepare(options('cifar10', source, tmp_path))
  assert set(os.listdir(tmp_path)) == before | {'data'}
  assert os.listdir(tmp_path / 'data') == ['cifar10']
  assert sorted(os.listdir(tmp_path / 'data' / 'cifar10')) == ['3.0.2', 'lock']


def test_counts_are_the_official_ones_unless_told_otherwise(tmp_path, formats):
  for name, fewer in (('cifar10', '20 examples'), ('tiny_imagenet', '9 ex')):
    source = archive(name, formats, tmp_path)
    with pytest.raises(errors.DataError, match=f'train: has {fewer}.*partial'):
      prepare.prepare(options(name, source, tmp_path, allow_partial=False))
  assert not os.path.exists(tmp_path / 'data')


def test_an_uneven_set_of_the_right_size_is_refused(
  monkeypatch, tmp_path, formats
):
  official_set = prepare.official.CIFAR10._replace(
    splits={'train': 20, 'test': 4}
  )
  monkeypatch.setitem(prepare.official.SETS, 'cifar10', official_set)
  source = formats.cifar10(tmp_path)
  with pytest.raises(errors.DataError, match='0 to 4 of each class'):
    prepare.prepare(options('cifar10', source, tmp_path, allow_partial=False))


def bad_imagenet(formats, directory):
  """Two files of the training set are no whole images."""
  train, validation, labels = formats.imagenet_files()
  files = (
    train['n01443537'] if 'n01443537' in train else next(iter(train.values()))
  )
  names = sorted(files)
  files[names[0]] = b'<html>not found</html>'
  files[names[1]] = files[names[1]][:-100]
  source = formats.imagenet(directory / 'tars', train, validation, labels)
  return source, names


def test_bad_records_are_collected_and_left_out_when_told(
  tmp_path, formats, capsys
):
  source, names = bad_imagenet(formats, tmp_path)
  with pytest.raises(errors.DataError, match=r'2 bad records.*--skip_bad'):
    prepare.prepare(options('imagenet', source, tmp_path))
  printed = capsys.readouterr().err
  for name in names[:2]:
    assert f'ILSVRC2012_img_train.tar, {name}: ' in printed
  parent = tmp_path / 'data' / 'imagenet2012'
  assert sorted(os.listdir(parent)) == ['incomplete.5.1.0', 'lock']

  final = prepare.prepare(options('imagenet', source, tmp_path, skip_bad=True))
  assert '7 train, 4 validation; 2 skipped' in capsys.readouterr().err
  assert len(image_sets.open_set('imagenet', f'{tmp_path}/data').train) == 7
  with open(f'{final}/prepared.json') as file:
    skipped = json.load(file)['skipped']
  assert len(skipped) == 2
  assert f'{names[0]}: is no JPEG' in skipped[0]


def test_a_mended_source_is_looked_at_again(tmp_path, formats):
  files = formats.tiny_files()
  name = f'train/{formats.tiny_wnids[1]}/images/{formats.tiny_wnids[1]}_2.JPEG'
  good = files[name]
  files[name] = bytes(len(good))
  tree = formats.tree(tmp_path / 'tiny-imagenet-200', files)
  with pytest.raises(errors.DataError, match='1 bad records'):
    prepare.prepare(options('tiny_imagenet', tree, tmp_path))
  with open(f'{tree}/{name}', 'wb') as file:
    file.write(good)
  prepare.prepare(options('tiny_imagenet', tree, tmp_path))
  train = image_sets.open_set('tiny_imagenet', f'{tmp_path}/data').train
  np.testing.assert_array_equal(train[5]['image'], images.decode(good))


def test_a_split_without_a_good_record_is_refused(tmp_path, formats):
  train, validation, labels = formats.imagenet_files()
  bad = dict.fromkeys(validation, b'text')
  source = formats.imagenet(tmp_path / 'tars', train, bad, labels)
  with pytest.raises(errors.DataError, match='split validation: all are bad'):
    prepare.prepare(options('imagenet', source, tmp_path, skip_bad=True))


FAULTS = {
  'a wrong size': (64, 63),
  'another wrong size': (65, 64),
}


@pytest.mark.parametrize('case', FAULTS)
def test_an_image_of_a_wrong_size_is_a_bad_record(case, tmp_path, formats):
  files = formats.tiny_files()
  name = f'train/{formats.tiny_wnids[1]}/images/{formats.tiny_wnids[1]}_2.JPEG'
  files[name] = formats.jpeg(0, *FAULTS[case])
  source = formats.tiny(tmp_path, files)
  with pytest.raises(errors.DataError, match='1 bad records'):
    prepare.prepare(options('tiny_imagenet', source, tmp_path))


def test_a_label_out_of_range_is_a_bad_record(tmp_path, formats, capsys):
  files, _ = formats.cifar10_files()
  pixels = np.zeros((4, 3072), np.uint8)
  files['test_batch'] = formats.pickle(
    {b'data': pixels, b'labels': [1, 2, 10, 3]}
  )
  source = formats.cifar10(tmp_path, files)
  with pytest.raises(errors.DataError, match='1 bad records'):
    prepare.prepare(options('cifar10', source, tmp_path))
  line = 'test, test_00002: has label 10 of 10 classes'
  assert line in capsys.readouterr().err


def test_two_examples_of_one_name_are_refused(tmp_path, formats):
  train, validation, labels = formats.imagenet_files()
  groups = list(train.values())
  groups[1].update(groups[0])
  source = formats.imagenet(tmp_path / 'tars', train, validation, labels)
  with pytest.raises(errors.DataError, match='occurs twice'):
    prepare.prepare(options('imagenet', source, tmp_path))


MISTAKES = {
  'no name': ([], ['NAME', 'choose one of cifar10']),
  'two names': (['cifar10', 'cifar100'], ['NAME', 'is no one set']),
  'an unknown name': (['mnist'], ["NAME='mnist'", 'is unknown']),
  'no source': (['cifar10', '--data_dir=/x'], ['--source', 'is missing']),
  'a negative number': (
    ['imagenet', '--source=/x', '--data_dir=/x', '--resize=-3'],
    ['--resize=-3', 'is negative'],
  ),
  'a resize below the crops': (
    ['imagenet', '--source=/x', '--data_dir=/x', '--resize=64'],
    ['--resize=64', 'below the 224'],
  ),
  'a resize of what has one size': (
    ['cifar10', '--source=/x', '--data_dir=/x', '--resize=256'],
    ['--resize=256', 'has no effect on cifar10'],
  ),
}


def in_process(arguments, capsys):
  """Exit code and stderr of the command line; faster than a process."""
  saved = prepare.flags.FLAGS
  for name in list(saved):
    if saved[name].present:
      saved[name].unparse()
  with pytest.raises(SystemExit) as info:
    prepare.main(prepare.flags.FLAGS(['prepare', *arguments]))
  return info.value.code, capsys.readouterr().err


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(mistake, capsys):
  arguments, parts = MISTAKES[mistake]
  code, printed = in_process(arguments, capsys)
  assert code == 2
  assert len(printed.splitlines()) == 1
  assert printed.startswith('error: ')
  for part in parts:
    assert part in printed


def test_data_that_are_wrong_and_places_that_refuse_are_exit_3(
  tmp_path, formats, capsys
):
  source = formats.cifar10(tmp_path)
  os.truncate(source, 5000)
  arguments = ['cifar10', f'--source={source}', '--allow_partial']
  code, printed = in_process([*arguments, f'--data_dir={tmp_path}/d'], capsys)
  assert code == 3
  assert printed.startswith(f'error: {source}: cannot be read')
  assert len(printed.splitlines()) == 1
  # A file stands where the folder should go.
  source = formats.cifar10(tmp_path)
  (tmp_path / 'file').write_bytes(b'')
  code, printed = in_process(
    [*arguments, f'--data_dir={tmp_path}/file'], capsys
  )
  assert code == 3
  assert 'Traceback' not in printed


def test_unknown_flags_are_one_line(run):
  done = run('lipnext_jax.data.prepare', 'cifar10', '--sorce=x')
  assert done.returncode == 2
  assert 'sorce' in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_killed_run_is_continued(tmp_path, formats):
  """SIGKILL with some shards done: the rest follows, nothing is redone."""
  files, _ = formats.cifar10_files()
  count = 2 * jobs.EXAMPLES_PER_SHARD
  batch = {b'data': np.zeros((count, 3072), np.uint8), b'labels': [1] * count}
  files |= {f'data_batch_{i}': formats.pickle(batch) for i in range(1, 6)}
  source = formats.cifar10(tmp_path, files)
  process = subprocess.Popen(
    [
      sys.executable, '-m', 'lipnext_jax.data.prepare', 'cifar10',
      f'--source={source}', f'--data_dir={tmp_path}/data', '--workers=0',
      '--allow_partial',
    ],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  work = tmp_path / 'data' / 'cifar10' / 'incomplete.3.0.2'
  progress = work / 'progress'
  deadline = time.monotonic() + 60
  while process.poll() is None and time.monotonic() < deadline:
    done = list(progress.glob('cifar10*.json')) if progress.exists() else []
    if len(done) >= 2:
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.002)
  assert process.wait() == -signal.SIGKILL
  finished = {
    path.name.removesuffix('.json'): (work / path.name.removesuffix('.json'))
    for path in progress.glob('cifar10*.json')
  }
  before = {name: path.stat().st_mtime_ns for name, path in finished.items()}
  assert 2 <= len(before) < 10
  assert not (work.parent / '3.0.2').exists()

  final = prepare.prepare(options('cifar10', source, tmp_path))
  after = times(final)
  assert {name: after[name] for name in before} == before
  assert not [name for name in after if name.endswith('.part')]
  train = image_sets.open_set('cifar10', f'{tmp_path}/data').train
  assert len(train) == 5 * count


def test_a_record_damaged_later_ends_training_in_one_line(
  tmp_path, formats, run
):
  """After `prepare` has seen it whole: a disk went bad, say."""
  final = prepare.prepare(
    options('cifar10', formats.cifar10(tmp_path), tmp_path)
  )
  (shard,) = [name for name in os.listdir(final) if '10-train' in name]
  with open(f'{final}/{shard}', 'r+b') as file:
    file.seek(300)
    file.write(bytes(range(256)))
  done = run(
    'lipnext_jax.main',
    '--config=configs/cifar10.py',
    f'--workdir={tmp_path}/run',
    f'--config.dataset.data_dir={tmp_path}/data',
    '--config.model.depth=2',
    '--config.model.width=16',
    '--config.batch_size=64',
    '--config.duration=2 steps',
    '--config.optimizer.warmup=1 steps',
  )
  assert done.returncode == 3, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: {final}, split train, record 0: ')
