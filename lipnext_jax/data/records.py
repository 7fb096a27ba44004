"""ArrayRecord sets in the layout of TFDS: written in shards, read by index.

`tfds.data_source(name, split=…, data_dir=…, download=False)` reads the results
of `write_shard` and `write_metadata`. `RecordSource` reads them, too, and sets
that TFDS prepared with `file_format='array_record'`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import official
from lipnext_jax.data.formats import archives

# Features of TFDS sets that name a record.
_KEYS = ('id', 'file_name', 'filename', 'image/filename')


class Form(NamedTuple):
  """The form in which the examples of a set are stored."""

  official_set: official.OfficialSet
  class_names: dict[str, list[str]]  # Label feature → names by label.
  resize: int = 0  # `shorter_side` of `images.to_stored`.


class ShardResult(NamedTuple):
  """The contents of a written shard."""

  labels: list[int]  # Labels of the stored examples, in order.
  num_bytes: int  # Size of the stored images.
  bad: dict[str, str]  # Key of an example that was left out → its problem.


def shard_paths(directory: str, name: str, split: str, count: int) -> list[str]:
  """Returns the paths of the shards of a split, as TFDS names them.

  >>> shard_paths('/data', 'cifar10', 'test', 1)
  ['/data/cifar10-test.array_record-00000-of-00001']
  """
  template = _template(directory, name, split)
  return [os.fspath(p) for p in template.sharded_filepaths(num_shards=count)]


def labels_path(directory: str, split: str) -> str:
  """Returns the path of the labels of a split, int32 [n], beside its shards."""
  return os.path.join(directory, f'labels-{split}.npy')


def write_shard(
  path: str, items: Sequence[archives.Item], form: Form
) -> ShardResult:
  """Writes a shard; leaves out images that are damaged or do not fit.

  Args:
    path: path of the shard, which appears when the shard is complete.
    items: the examples.
    form: form in which they are stored.
  """
  official_set = form.official_set
  features = official.build_features(official_set, form.class_names)
  result = ShardResult([], 0, {})
  temporary = f'{path}.part'
  # Groups of one record, for random access.
  writer = array_record_module.ArrayRecordWriter(temporary, 'group_size:1')
  for item in items:
    try:
      image = _encode(item, form)
    except (images.BadImageError, errors.DataError) as error:
      result.bad[item.key] = str(error)
      continue
    example = {'image': image, **item.labels}
    if official_set.key:
      example[official_set.key] = item.key
    writer.write(features.serialize_example(features.encode_example(example)))
    result.labels.append(item.labels['label'])
    result = result._replace(num_bytes=result.num_bytes + len(image))
  writer.close()
  os.replace(temporary, path)
  return result


def write_metadata(
  directory: str, form: Form, shards: Mapping[str, Sequence[ShardResult]]
) -> None:
  """Writes the JSON files that make a folder of shards a TFDS set.

  Args:
    directory: folder of the shards.
    form: form in which the examples are stored.
    shards: contents of the shards in order, by split.
  """
  official_set = form.official_set
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=official_set.name,
      version=tfds.core.Version(official_set.version),
      data_dir=directory,
      module_name=__name__,
    ),
    features=official.build_features(official_set, form.class_names),
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
  """Examples of one split, decoded when they are read.

  Threads may share it. It is pickled as a path, and worker processes open the
  files again.

  Attributes:
    class_names: names of the classes by label.
    num_classes: number of classes.
    shape: (h, w, ch) of the images, with None for sizes that vary.
    splits: names of all splits of the set.
  """

  def __init__(self, directory: str, split: str):
    """Opens a prepared split.

    Args:
      directory: folder of a version of the set, e.g. '/data/cifar10/3.0.2'.
      split: name of the split.

    Raises:
      DataError: the set cannot be read, or lacks the split.
    """
    self._directory, self._split = directory, split
    where = f'{directory}, split {split}'
    try:
      builder = tfds.builder_from_directory(directory)
      if split not in builder.info.splits:
        raise errors.DataError(
          f'{where}: holds only {", ".join(builder.info.splits)}'
        )
      written_as = builder.info.file_format
      if written_as is None or written_as.value != 'array_record':
        raise errors.DataError(
          f'{where}: is in the format {written_as and written_as.value}; '
          "prepare it again, with TFDS's file_format='array_record'"
        )
      features = builder.info.features
      self._image_key = _find_feature(builder.info, 0, tfds.features.Image)
      self._label_key = _find_feature(builder.info, 1, tfds.features.ClassLabel)
      self._records = builder.as_data_source(
        split, decoders={self._image_key: tfds.decode.SkipDecoding()}
      )
    except errors.DataError:
      raise
    except Exception as error:  # TFDS and protobuf raise any kind.
      raise errors.DataError(f'{where}: {errors.one_line(error)}') from None
    self.splits = list(builder.info.splits)
    self.class_names = list(features[self._label_key].names)
    self.num_classes = len(self.class_names)
    self.shape = features[self._image_key].shape
    if self.shape[2] not in (1, 3):
      raise errors.DataError(f'{where}: has images of {self.shape[2]} channels')
    for path in builder.info.splits[split].filepaths:
      if not os.path.exists(path):
        raise errors.DataError(f'{where}: the shard {path} is missing')

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | np.generic]:
    """Returns {'image': uint8 [h, w, 1 or 3], 'label': int32}.

    Raises:
      DataError: the record is damaged.
    """
    example = self._read(index)
    try:
      image = images.decode(example[self._image_key])[..., : self.shape[2]]
    except images.BadImageError as error:
      raise self._error(index, example, error) from None
    sizes = zip(self.shape, image.shape, strict=True)
    if any(wanted not in (None, size) for wanted, size in sizes):
      problem = f'is {list(image.shape)} instead of {list(self.shape)}'
      raise self._error(index, example, problem)
    return {'image': image, 'label': self._label(index, example)}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n].

    They are in a file that `prepare` wrote beside the shards. A set that TFDS
    prepared does not have this file, and every record is read.
    """
    path = labels_path(self._directory, self._split)
    if os.path.exists(path):
      try:
        labels = np.load(path, allow_pickle=False)
      except (OSError, ValueError, EOFError) as error:
        raise errors.DataError(f'{path}: {errors.one_line(error)}') from None
      if labels.shape == (len(self),) and labels.dtype == np.int32:
        return labels
      raise errors.DataError(f'{path}: does not fit its shards; delete it')
    indices = tqdm.tqdm(range(len(self)), desc='labels', unit=' records')
    return np.array([self._label(i, self._read(i)) for i in indices], np.int32)

  def names(self) -> list[str]:
    """Reads the key of every record; returns [] if they have none."""
    keys = [self._key(self._read(i)) for i in range(len(self))]
    return keys if all(keys) else []

  def _read(self, index: int):
    if not 0 <= index < len(self):
      raise IndexError(index)  # Ends a loop over the source.
    try:
      return self._records[index]
    except Exception as error:  # ArrayRecord and protobuf raise any kind.
      raise self._error(index, {}, errors.one_line(error)) from None

  def _label(self, index, example) -> np.int32:
    label = int(example[self._label_key])
    if not 0 <= label < self.num_classes:
      problem = f'has label {label} of {self.num_classes} classes'
      raise self._error(index, example, problem)
    return np.int32(label)

  def _error(self, index, example, problem) -> errors.DataError:
    key = self._key(example)
    record = f'record {index}' + (f' ({key})' if key else '')
    return errors.DataError(
      f'{self._directory}, split {self._split}, {record}: {problem}'
    )

  def _key(self, example) -> str:
    """Returns the name of a record in its set, or ''."""
    keys = (example.get(name) for name in _KEYS)
    found = next((key for key in keys if isinstance(key, bytes)), b'')
    return found.decode('utf-8', 'replace')

  def __reduce__(self):
    return RecordSource, (self._directory, self._split)


def _find_feature(info: tfds.core.DatasetInfo, place: int, kind: type) -> str:
  """Returns the name of the feature of a type.

  If several have the type, that at `place` in the supervised keys is chosen.
  """
  found = [n for n, f in info.features.items() if isinstance(f, kind)]
  keys = info.supervised_keys
  if keys and keys[place] in found:
    return keys[place]
  if len(found) == 1:
    return found[0]
  raise errors.DataError(
    f'{info.name}: has {len(found)} features of type {kind.__name__}, not one '
    f'({", ".join(info.features)})'
  )


def _template(directory, name, split) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    dataset_name=name,
    data_dir=directory,
    filetype_suffix='array_record',
    split=split,
  )


def _encode(item: archives.Item, form: Form) -> bytes:
  """Returns the image file to store; raises if the image does not fit."""
  content = item.content
  if isinstance(content, np.ndarray):
    stored = images.Stored(images.encode_png(content), content.shape)
  else:
    if isinstance(content, archives.Entry):
      content = archives.read(content)
    stored = images.to_stored(content, form.resize)
  wanted = form.official_set.image_shape
  if wanted and stored.shape != wanted:
    raise images.BadImageError(
      f'is {list(stored.shape)} instead of {list(wanted)}'
    )
  return stored.data
