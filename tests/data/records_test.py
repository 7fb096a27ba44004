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
from lipnext_jax.data import archives
from lipnext_jax.data import images
from lipnext_jax.data import records
from lipnext_jax.data import shards
from lipnext_jax.data import sources


@pytest.fixture
def prepared(tmp_path, make, monkeypatch):
  """Three shards, of whose four images the middle one has none."""
  monkeypatch.setattr(shards, 'EXAMPLES_PER_SHARD', 2)
  directory = str(tmp_path / 'cifar10' / '3.0.2')
  items = make.items(6)
  (tmp_path / 'text.jpg').write_bytes(b'no image')
  entry = archives.stat_file(str(tmp_path / 'text.jpg'))
  bad = [
    item._replace(content=content)
    for item, content in zip(items[:2], (b'', entry), strict=True)
  ]
  splits = {'train': [*items[:2], *bad, *items[2:4]], 'test': items[:5]}
  written = shards.write_splits(directory, splits, make.FORM, workers=2)
  assert [len(shard.labels) for shard in written['train']] == [2, 0, 2]
  problems = written['train'][1].bad
  assert problems[items[0].key] == 'is empty'
  assert 'is not a JPEG' in problems[items[1].key]
  shards.write_metadata(directory, make.FORM, written)
  return directory, sorted(glob.glob(f'{directory}/*-train.*'))


def test_what_was_written_is_read_by_index_and_by_tfds(
  prepared, make, tmp_path
):
  for split, count in (('train', 4), ('test', 5)):
    source = records.RecordSource(prepared[0], split)
    theirs = tfds.data_source(
      'cifar10', split=split, data_dir=str(tmp_path), download=False
    )
    assert len(source) == len(theirs) == count
    for i in range(count):
      image = make.pixels(i, 32, 32)
      for example in (source[i], theirs[i]):
        np.testing.assert_array_equal(example['image'], image)
        assert example['label'] == i
      assert theirs[i]['id'] == f'train_{i:05d}'.encode()
  assert source[3]['label'].dtype == np.int32
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
  assert all(
    dataset.train[i]['image'][0, 0, 0] % 2 == dataset.train[i]['label']
    for i in range(6)
  )
  for name, message in (('', 'set dataset.set_name'), ('mice', 'no mice')):
    c.set_name = name
    with pytest.raises(errors.ConfigError, match=message):
      sources.load_dataset(c)


def png(height):
  return images.encode_png(np.ones((height, 32, 3), np.uint8))


def record(**changes):
  """Serializes an example of the set, as another program might write it."""
  features = tfds.features.FeaturesDict(
    {
      'id': tfds.features.Text(),
      'image': tfds.features.Text(),
      'label': tfds.features.Scalar(np.int64),
    }
  )
  example = {'id': 'train_00007', 'image': png(32), 'label': 1} | changes
  return features.serialize_example(features.encode_example(example))


FAULTY = [  # Changed fields, and what the error says.
  ({'image': png(32)[:60]}, 'cannot be decoded'),
  ({'image': b'text'}, 'is not a JPEG'),
  ({'image': png(31)}, r'is \[31, 32, 3\] instead of \[32, 32, 3\]'),
  ({'label': 10}, 'has label 10 of 10 classes'),
  ({'label': -1}, 'has label -1 of 10 classes'),
]


def overwrite(path, *data):
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
  for one in data:
    writer.write(one)
  writer.close()


def test_damaged_records_and_shards_are_named_with_their_set(prepared):
  directory, paths = prepared
  for changes, message in FAULTY:
    overwrite(paths[0], record(), record(**changes))
    source = records.RecordSource(directory, 'train')
    assert source[0]['label'] == 1
    where = f'{directory}, split train, record 1 .train_00007.: '
    with pytest.raises(errors.DataError, match=f'^{where}{message}'):
      source[1]
  overwrite(paths[2], record(), b'\xff' * 40)  # Bytes that are no example.
  shard = pathlib.Path(paths[0])
  data = shard.read_bytes()
  shard.write_bytes(data[:200] + b'\x00\xff' * 200 + data[600:])
  source = records.RecordSource(directory, 'train')
  for index in (0, 3):
    with pytest.raises(errors.DataError, match=f'train, record {index}: '):
      source[index]


def test_missing_parts_and_other_formats_are_refused(prepared, tmp_path):
  directory, paths = prepared
  with pytest.raises(errors.DataError, match='holds only train, test'):
    records.RecordSource(directory, 'validation')
  with pytest.raises(errors.DataError, match='split train'):
    records.RecordSource(str(tmp_path / 'nowhere'), 'train')
  os.remove(paths[2])
  with pytest.raises(errors.DataError, match=r'split train: .* is missing'):
    records.RecordSource(directory, 'train')
  info = pathlib.Path(directory, 'dataset_info.json')
  text = info.read_text()
  for other, message in (
    (text.replace('"array_record"', '"tfrecord"'), r"tfrecord.*'array_record'"),
    ('{"name": ', 'split train'),
  ):
    info.write_text(other)
    with pytest.raises(errors.DataError, match=message):
      records.RecordSource(directory, 'train')


def test_a_source_survives_pickling_and_threads(prepared, make):
  pickled = pickle.dumps(records.RecordSource(prepared[0], 'train'))
  # Workers get the name of the set, not its records.
  assert len(pickled) < 500
  source = pickle.loads(pickled)
  order = [0, 2, 1, 3] * 20
  with futures.ThreadPoolExecutor(4) as threads:
    for i, example in zip(
      order, threads.map(source.__getitem__, order), strict=True
    ):
      np.testing.assert_array_equal(example['image'], make.pixels(i, 32, 32))


def test_labels_come_from_the_file_beside_the_shards_if_it_fits(prepared):
  directory, _ = prepared
  source = records.RecordSource(directory, 'train')
  path = records.labels_path(directory, 'train')
  np.save(path, np.array([3, 2, 1, 0], np.int32))
  assert source.read_labels().tolist() == [3, 2, 1, 0]
  for wrong in (np.zeros(5, np.int32), np.zeros(4)):
    np.save(path, wrong)
    with pytest.raises(errors.DataError, match='does not fit'):
      source.read_labels()
  with open(path, 'wb') as file:
    file.write(b'text')
  with pytest.raises(errors.DataError, match=r'labels-train\.npy'):
    source.read_labels()
  os.remove(path)
  assert source.read_labels().tolist() == [0, 1, 2, 3]  # From the records.
