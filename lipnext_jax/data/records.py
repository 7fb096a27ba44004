"""Reads one split of an ArrayRecord set of TFDS, or of `prepare`, by index."""

import os

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from lipnext_jax import errors
from lipnext_jax.data import images
from lipnext_jax.data import views

# Features of TFDS sets that name a record.
_KEYS = ('id', 'file_name', 'filename', 'image/filename')


def labels_path(directory: str, split: str) -> str:
  """Returns the path of the labels of a split, int32 [n], beside its shards."""
  return os.path.join(directory, f'labels-{split}.npy')


class RecordSource(views.Source):
  """Examples of one split, decoded when they are read.

  Threads may share it. It is pickled as a path, and worker processes open the
  files again.

  Attributes:
    class_names: names of the classes by label.
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
    try:
      self._open(tfds.builder_from_directory(directory))
    except Exception as error:  # TFDS and protobuf raise any kind.
      raise self._error(errors.one_line(error)) from None

  def _open(self, builder) -> None:
    """Opens the split of a builder; raises if it does not fit."""
    info, split = builder.info, self._split
    self.splits = list(info.splits)
    if split not in self.splits:
      raise ValueError(f'holds only {", ".join(self.splits)}')
    written_as = info.file_format and info.file_format.value
    if written_as != 'array_record':
      raise ValueError(
        f"is in the format {written_as}; prepare it again, with TFDS's "
        "file_format='array_record'"
      )
    keys = info.supervised_keys or ('', '')  # Of several images or labels.
    self._image_key = views.find_feature(
      info.features, tfds.features.Image, keys[0]
    )
    self._label_key = views.find_feature(
      info.features, tfds.features.ClassLabel, keys[1]
    )
    self.class_names = list(info.features[self._label_key].names)
    self.shape = info.features[self._image_key].shape
    if self.shape[2] not in (1, 3):
      raise ValueError(f'has images of {self.shape[2]} channels')
    for path in info.splits[split].filepaths:
      if not os.path.exists(path):
        raise ValueError(f'the shard {path} is missing')
    self._records = builder.as_data_source(
      split, decoders={self._image_key: tfds.decode.SkipDecoding()}
    )

  def __reduce__(self):
    return RecordSource, (self._directory, self._split)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> views.Example:
    example = self._read(index)
    label, count = np.int32(example[self._label_key]), len(self.class_names)
    try:
      if not 0 <= label < count:
        raise images.BadImageError(f'has label {label} of {count} classes')
      image = images.decode(example[self._image_key])[..., : self.shape[2]]
    except images.BadImageError as error:
      raise self._error(error, index, _key(example)) from None
    return {'image': image, 'label': label}

  def read_labels(self) -> np.ndarray:
    """Returns all labels, int32 [n].

    They are in a file that `prepare` wrote beside the shards. A set that TFDS
    prepared does not have this file, and every record is read.
    """
    path = labels_path(self._directory, self._split)
    if os.path.exists(path):
      try:
        return np.load(path, allow_pickle=False)
      except (OSError, ValueError, EOFError) as error:
        raise errors.DataError(f'{path}: {errors.one_line(error)}') from None
    indices = tqdm.tqdm(range(len(self)), desc='labels', unit=' records')
    return np.array([self._read(i)[self._label_key] for i in indices], np.int32)

  def names(self) -> list[str]:
    """Reads the key of every record; returns [] if they have none."""
    keys = [_key(self._read(i)) for i in range(len(self))]
    return keys if all(keys) else []

  def _read(self, index: int) -> dict:
    if not 0 <= index < len(self):
      raise IndexError(index)  # Ends a loop over the source.
    try:
      return self._records[index]
    except Exception as error:  # ArrayRecord and protobuf raise any kind.
      raise self._error(errors.one_line(error), index) from None

  def _error(self, problem, index=None, key='') -> errors.DataError:
    where = f'{self._directory}, split {self._split}'
    if index is not None:
      where += f', record {index}'
    if key:
      where += f' ({key})'
    return errors.DataError(f'{where}: {problem}')


def _key(example: dict) -> str:
  """Returns the name of a record in its set, or ''."""
  keys = (example.get(name) for name in _KEYS)
  found = next((key for key in keys if isinstance(key, bytes)), b'')
  return found.decode('utf-8', 'replace')
