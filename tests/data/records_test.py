from concurrent import futures
import glob
import os
import pathlib
import pickle
import sys
import typing

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow_datasets as tfds

from lipnext_jax import config as config_lib
from lipnext_jax import errors
from lipnext_jax.data import formats
from lipnext_jax.data import images
from lipnext_jax.data import records
from lipnext_jax.data import shards
from lipnext_jax.data import sources


@pytest.fixture
def prepared(tmp_path, make, monkeypatch):
  """Three shards, of whose four images the middle one has none."""
  monkeypatch.setattr(shards, 'EXAMPLES_PER_SHARD', 2)
  directory = str(tmp_path / 'cifar10' / '3.0.2')
  first, second, *rest = make.items(4)
  small = first._replace(content=make.pixels(0, 31, 32))
  bad = [small, second._replace(content=b'no image')]
  splits = {'train': [first, second, *bad, *rest], 'test': rest}
  written = shards.write_splits(directory, splits, make.FORM, workers=2)
  assert [len(shard.labels) for shard in written['train']] == [2, 0, 2]
  problems = written['train'][1].bad
  assert problems[first.key] == 'is [31, 32, 3] instead of [32, 32, 3]'
  assert 'is not a JPEG' in problems[second.key]
  shards.write_metadata(directory, make.FORM, written)
  return directory, sorted(glob.glob(f'{directory}/*-train.*'))


def test_a_source_survives_pickling_and_threads(prepared, make):
  pickled = pickle.dumps(records.RecordSource(prepared[0], 'train'))
  # Workers get the name of the set, not its records.
  assert len(pickled) < 500
  source = pickle.loads(pickled)
  order = [0, 2, 1, 3] * 20
  with futures.ThreadPoolExecutor(4) as threads:
    examples = [*threads.map(source.__getitem__, order)]
  for i, example in zip(order, examples, strict=True):
    np.testing.assert_array_equal(example['image'], make.pixels(i, 32, 32))
    assert example['label'] == i
    assert example['label'].dtype == np.int32
  assert 'tensorflow' not in sys.modules


class Animals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set that this package does not know: grey, with names of its own."""

  name = 'animals'
  url_infos: typing.ClassVar = {}  # Nothing to fetch.
  VERSION = tfds.core.Version('1.2.0')
  labels: typing.ClassVar = ['cat', 'dog']

  def _info(self):
    features = {
      'picture': tfds.features.Image(shape=(None, None, 1)),
      'animal': tfds.features.ClassLabel(names=self.labels),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(8):
      image = images.encode_png(np.full((6 + i, 8, 3), i, np.uint8))
      yield i, {'picture': image, 'animal': self.labels[i % 2]}


def test_any_set_that_tfds_prepared_is_read_by_its_name(tmp_path):
  builder = Animals(data_dir=str(tmp_path))
  builder.download_and_prepare(file_format='array_record')
  source = records.RecordSource(builder.data_dir, 'train')
  assert source.read_labels().tolist() == [e['label'] for e in source]
  c = config_lib.default_config().dataset
  c.update(name='tfds', data_dir=str(tmp_path), set_name='animals')
  c.image_size = 5
  dataset = sources.load_dataset(c)
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.image_shape == dataset.test[0]['image'].shape == (5, 5, 1)
  # Without a test split, a share of each class is one.
  assert (len(dataset.train), len(dataset.test)) == (6, 2)
  assert {int(dataset.test[i]['label']) for i in range(2)} == {0, 1}
  for name, message in (('', 'set dataset.set_name'), ('mice', 'no mice')):
    c.set_name = name
    with pytest.raises(errors.ConfigError, match=message):
      sources.load_dataset(c)


def test_damaged_records_and_shards_are_named_with_their_set(
  prepared, make, monkeypatch
):
  directory, paths = prepared
  # Files are stored as they are, and labels of eleven classes.
  monkeypatch.setattr(shards, '_encode', lambda content, form: content)
  form = make.FORM._replace(class_names={'label': [*map(str, range(11))]})
  image = images.encode_png(make.pixels(0, 32, 32))
  good = formats.Item('train_00006', {'label': 1}, image)
  for content, label, message in (
    (b'text', 1, 'is not a JPEG'),
    (image, 10, 'has label 10 of 10 classes'),
    (image, -1, 'has label -1 of 10 classes'),
  ):
    bad = formats.Item('train_00007', {'label': label}, content)
    shards.write_shard(paths[0], [good, bad], form)
    source = records.RecordSource(directory, 'train')
    assert source[0]['label'] == 1
    where = f'{directory}, split train, record 1 .train_00007.: '
    with pytest.raises(errors.DataError, match=f'^{where}{message}'):
      source[1]
  writer = array_record_module.ArrayRecordWriter(paths[2], 'group_size:1')
  writer.write(b'\xff' * 40)  # Bytes that are no example.
  writer.write(b'')
  writer.close()
  shard = pathlib.Path(paths[0])
  data = shard.read_bytes()
  shard.write_bytes(data[:200] + b'\x00\xff' * 200 + data[600:])
  source = records.RecordSource(directory, 'train')
  for index in (0, 2):
    with pytest.raises(errors.DataError, match=f'train, record {index}: '):
      source[index]


def test_missing_parts_and_other_formats_are_refused(prepared, tmp_path):
  directory, paths = prepared
  info = pathlib.Path(directory, 'dataset_info.json')
  text = info.read_text()

  def refused(match, directory=directory, split='train'):
    with pytest.raises(errors.DataError, match=f'split {split}: .*{match}'):
      records.RecordSource(str(directory), split)

  refused('holds only train, test', split='validation')
  refused('', directory=tmp_path / 'nowhere')
  features = pathlib.Path(directory, 'features.json')
  declared = features.read_text()
  assert '"3"' in declared
  features.write_text(declared.replace('"3"', '"4"'))
  refused('has images of 4 channels')
  features.write_text(declared)
  os.remove(paths[2])
  refused('is missing')
  info.write_text(text.replace('"array_record"', '"tfrecord"'))
  refused("tfrecord.*'array_record'")
  info.write_text('{"name": ')
  refused('')


def test_labels_come_from_the_file_beside_the_shards(prepared):
  directory, _ = prepared
  source = records.RecordSource(directory, 'train')
  path = records.labels_path(directory, 'train')
  assert np.load(path).tolist() == [0, 1, 2, 3]
  np.save(path, np.array([3, 2, 1, 0], np.int32))
  assert source.read_labels().tolist() == [3, 2, 1, 0]
  os.truncate(path, 99)
  with pytest.raises(errors.DataError, match=r'labels-train\.npy'):
    source.read_labels()
  os.remove(path)
  assert source.read_labels().tolist() == [0, 1, 2, 3]  # From the records.
