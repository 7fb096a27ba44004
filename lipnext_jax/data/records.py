"""ArrayRecord sets as TFDS has them: written in shards, read by index.

What `write_shard` and `write_metadata` leave behind is what
`tfds.data_source(name, split=…, data_dir=…, download=False)` reads; a set that
TFDS prepared with `file_format='array_record'` is read by `RecordSource` too.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import threading
from typing import NamedTuple

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives
from lipnext_jax.data.formats import layouts


class BadItem(NamedTuple):
  """An example that cannot be stored, and why."""

  key: str
  problem: str


class ShardResult(NamedTuple):
  """What a written shard holds."""

  labels: list[int]  # Of the stored examples, in order.
  num_bytes: int  # Of the stored images.
  bad: list[BadItem]


def shard_paths(directory: str, name: str, split: str, count: int) -> list[str]:
  """Where TFDS expects the shards of a split.

  >>> shard_paths('/data', 'cifar10', 'test', 1)
  ['/data/cifar10-test.array_record-00000-of-00001']
  """
  template = _template(directory, name, split)
  return [os.fspath(p) for p in template.sharded_filepaths(num_shards=count)]


def labels_path(directory: str, split: str) -> str:
  """Where the labels of a split lie beside its shards, as int32 [n].

  >>> labels_path('/data/cifar10/3.0.2', 'test')
  '/data/cifar10/3.0.2/labels-test.npy'
  """
  return os.path.join(directory, f'labels-{split}.npy')


def write_shard(
  path: str,
  items: Sequence[layouts.Item],
  official_set: official.OfficialSet,
  class_names: dict[str, list[str]],
  resize: int = 0,
) -> ShardResult:
  """Decodes every image to see that it is whole, and stores the good ones.

  Args:
    path: of the file, which appears only when it is complete.
    items: the examples.
    official_set: what they must be like.
    class_names: of each label feature.
    resize: see `images.to_stored`.
  """
  features = official.build_features(official_set, class_names)
  labels, bad, num_bytes = [], [], 0
  temporary = f'{path}.part'
  # Groups of one record: what random access wants.
  writer = array_record_module.ArrayRecordWriter(temporary, 'group_size:1')
  for item in items:
    try:
      stored = _to_stored(item, official_set, class_names, resize)
    except (images.BadImageError, errors.DataError) as error:
      bad.append(BadItem(item.key, str(error)))
      continue
    example = {official_set.key: item.key, 'image': stored.data, **item.labels}
    writer.write(features.serialize_example(features.encode_example(example)))
    labels.append(item.labels['label'])
    num_bytes += len(stored.data)
  writer.close()
  os.replace(temporary, path)
  return ShardResult(labels, num_bytes, bad)


def write_metadata(
  directory: str,
  official_set: official.OfficialSet,
  class_names: dict[str, list[str]],
  shards: Mapping[str, Sequence[ShardResult]],
) -> None:
  """The JSON files that make a folder of shards a set.

  Args:
    directory: that holds the shards.
    official_set: its name, version and features.
    class_names: of each label feature.
    shards: split → its shards, in order.
  """
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=official_set.name,
      version=tfds.core.Version(official_set.version),
      data_dir=directory,
      module_name=__name__,
    ),
    features=official.build_features(official_set, class_names),
    supervised_keys=('image', 'label'),
    homepage=official_set.homepage,
  )
  info.set_file_format('array_record')
  info.set_splits(
    tfds.core.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[len(shard.labels) for shard in results],
          num_bytes=sum(shard.num_bytes for shard in results),
          filename_template=_template(directory, official_set.name, split),
        )
        for split, results in shards.items()
      ]
    )
  )
  info.write_to_directory(directory)


class RecordSource:
  """The decoded examples of one split, by index.

  Safe to share between threads, and small to send to worker processes: they
  open the files anew.
  """

  def __init__(self, directory: str, split: str):
    """Opens a prepared split.

    Args:
      directory: of the version, e.g. '/data/cifar10/3.0.2'.
      split: its name.

    Raises:
      DataError: it is no readable set, or lacks the split.
    """
    self._directory, self._split = directory, split
    self._lock = threading.Lock()
    self._open()

  def _open(self) -> None:
    where = f'{self._directory}, split {self._split}'
    try:
      builder = tfds.builder_from_directory(self._directory)
      if self._split not in builder.info.splits:
        raise errors.DataError(
          f'{where}: holds only {", ".join(builder.info.splits)}'
        )
      written_as = builder.info.file_format
      if written_as is None or written_as.value != 'array_record':
        raise errors.DataError(
          f'{where}: is in the format {written_as and written_as.value}; '
          "prepare it again, with TFDS's file_format='array_record'"
        )
      self._records = builder.as_data_source(
        self._split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    except errors.DataError:
      raise
    except Exception as error:  # Of TFDS, JSON, protobuf and ArrayRecord.
      raise errors.DataError(f'{where}: {_line(error)}') from None
    features = builder.info.features
    self.num_classes = int(features['label'].num_classes)
    self._shape = features['image'].shape  # None where it varies.
    for path in builder.info.splits[self._split].filepaths:
      if not os.path.exists(path):
        raise errors.DataError(f'{where}: the shard {path} is missing')

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """{'image': uint8 [h, w, 3], 'label': int32}.

    Raises:
      DataError: naming the set, the split and the record that is damaged.
    """
    example = self._read(index)
    try:
      image = images.decode(example['image'])
    except images.BadImageError as error:
      raise self._error(index, example, error) from None
    fits = (
      wanted in (None, got)
      for wanted, got in zip(self._shape, image.shape, strict=True)
    )
    if not all(fits):
      problem = f'is {list(image.shape)} instead of {list(self._shape)}'
      raise self._error(index, example, problem)
    return {'image': image, 'label': self._label(index, example)}

  def read_labels(self) -> np.ndarray:
    """All labels, int32 [n].

    From the file that `prepare` left beside the shards; where TFDS prepared
    the set there is none, and every record is read once.
    """
    path = labels_path(self._directory, self._split)
    if os.path.exists(path):
      try:
        labels = np.load(path, allow_pickle=False)
      except (OSError, ValueError, EOFError) as error:
        raise errors.DataError(f'{path}: {_line(error)}') from None
      if labels.shape == (len(self),) and labels.dtype == np.int32:
        return labels
      raise errors.DataError(f'{path}: does not fit its shards; delete it')
    indices = tqdm.tqdm(range(len(self)), desc='labels', unit=' records')
    return np.array([self._label(i, self._read(i)) for i in indices], np.int32)

  def _read(self, index: int):
    if not 0 <= index < len(self):
      raise IndexError(index)  # Which ends a loop over the source.
    try:
      return self._records[index]
    except Exception as error:  # Of ArrayRecord, protobuf and TFDS.
      raise self._error(index, {}, _line(error)) from None

  def _label(self, index, example) -> np.int32:
    label = int(example['label'])
    if not 0 <= label < self.num_classes:
      problem = f'has label {label} of {self.num_classes} classes'
      raise self._error(index, example, problem)
    return np.int32(label)

  def _error(self, index, example, problem) -> errors.DataError:
    names = (example.get(key) for key in ('id', 'file_name'))
    name = next((n.decode('utf-8', 'replace') for n in names if n), None)
    record = f'record {index}' + (f' ({name})' if name else '')
    return errors.DataError(
      f'{self._directory}, split {self._split}, {record}: {problem}'
    )

  def __reduce__(self):
    return RecordSource, (self._directory, self._split)


def _template(directory, name, split) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    dataset_name=name,
    data_dir=directory,
    filetype_suffix='array_record',
    split=split,
  )


def _to_stored(item, official_set, class_names, resize) -> images.Stored:
  for feature, label in item.labels.items():
    if not 0 <= label < len(class_names[feature]):
      raise images.BadImageError(
        f'has {feature} {label} of {len(class_names[feature])} classes'
      )
  if isinstance(item.content, bytes):
    channels_last = np.frombuffer(item.content, np.uint8).reshape(3, 32, 32)
    pixels = np.ascontiguousarray(channels_last.transpose(1, 2, 0))
    return images.Stored(images.encode_png(pixels), pixels.shape)
  try:
    stored = images.to_stored(archives.read(item.content), resize)
  except images.BadImageError as error:
    where = archives.describe(item.content)
    raise images.BadImageError(f'{where}: {error}') from None
  wanted = official_set.image_shape
  if wanted and stored.shape != wanted:
    raise images.BadImageError(
      f'{archives.describe(item.content)}: is {list(stored.shape)} instead of '
      f'{list(wanted)}'
    )
  return stored


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300] or type(error).__name__
